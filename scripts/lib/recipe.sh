# Sourced by the recipes: settings from the environment, and how a run is launched, skipped or resumed.
# Callers name the hyper-parameters; nothing here does.

# shellcheck shell=bash

root=$PWD # recipes change to the clone's root before they source this
case "${1:-}" in -h | --help) ;; *) source scripts/lib/venv.sh ;; esac

# Usage: own_settings NAME...; what the recipe has besides the settings of all.
own_settings() { own=("$@"); }
own=()

# Usage: recipe_settings DATA OUTPUT GPUS ALPHAS TEMPERATURES [ARGUMENT...]; the first five are this recipe's defaults.
# Shows the caller's header and all settings, and stops, where the first ARGUMENT asks for help.
recipe_settings() {
    : "${DATA:=$1}" # folder of the data set
    : "${OUTPUT:=$2}" # runs go to folders in here
    : "${GPUS:=$3}" # processes on this machine, one for each GPU
    : "${ALPHAS:=$4}" # label smoothing of the teachers
    : "${TEMPERATURES:=$5}" # temperatures of the distillation
    : "${NODES:=1}" # machines; run the same command on each, OUTPUT on a disk they share
    : "${NODE_RANK:=0}" # number of this machine, from 0
    : "${MASTER:=127.0.0.1:29500}" # host:port of machine 0, the same on all machines
    : "${BATCH:=}" # images of a process at a time; empty: as the paper's, added up where there are fewer processes
    : "${WORKERS:=16}" # loader processes or threads per process
    : "${SEED:=0}" # of everything random
    : "${DEVICE:=cuda}" # cuda or cpu
    : "${AMP_DTYPE:=fp16}" # of the runs in mixed precision: fp16 as in the paper, bf16, or none
    : "${CHECKPOINT:=best.pth}" # what counts of a finished run: best.pth or checkpoint.pth (the last)
    : "${DRY_RUN:=}" # 1: print the commands, run nothing
    case "${6:-}" in -h | --help) recipe_help && exit ;; esac
    PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
    local names others name shown=
    read -ra others <<< "$(sed -n 's/^own_settings //p' scripts/*/*.sh | tr '\n' ' ')"
    mapfile -t names < <(sed -n 's/^    : "${\([A-Z_]*\):=.*}" # .*/\1/p' "${BASH_SOURCE[0]}")
    names+=("${own[@]}")
    "$PYTHON" scripts/lib/environment.py "$(basename "$0")" "${names[@]}" -- "${others[@]}" || exit 2
    read -ra alphas <<< "$ALPHAS"
    read -ra temperatures <<< "$TEMPERATURES"
    if [ ${#alphas[@]} = 0 ] || { [ -n "$5" ] && [ ${#temperatures[@]} = 0 ]; }; then
        echo "recipe: ALPHAS is '$ALPHAS' and TEMPERATURES is '$TEMPERATURES': nothing to run; give values such as '0.0 0.1'" >&2
        exit 2
    fi
    for name in GPUS NODES; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] ||
            { echo "recipe: $name is '${!name}'; give a number from 1" >&2 && exit 2; }
    done
    case "$DEVICE" in
        cpu) ;;
        cuda) [ -n "$DRY_RUN" ] || check_gpus ;;
        *) echo "recipe: DEVICE is '$DEVICE'; give cuda or cpu" >&2 && exit 2 ;;
    esac
    case "$AMP_DTYPE" in
        fp16 | bf16) precision=(--amp --amp-dtype "$AMP_DTYPE") ;;
        none) precision=() ;;
        *) echo "recipe: AMP_DTYPE is '$AMP_DTYPE'; give fp16, bf16, or none for full precision" >&2 && exit 2 ;;
    esac
    for name in "${names[@]}"; do
        if [ -n "${!name:-}" ]; then shown+=" $name=${!name@Q}"; fi
    done
    echo "recipe: $(basename "$0")$(sed -E "s/='([A-Za-z0-9_.,:=\/@%+{}-]+)'/=\1/g" <<< "$shown")" >&2
}

check_gpus() {
    local found
    found=$("$PYTHON" -c 'import sys; sys.path.insert(0, "."); from scripts.lib.jobs import gpus; print(len(gpus()))')
    if ((found < GPUS)); then
        echo "recipe: GPUS is $GPUS, but this machine has $found; set GPUS=$found, or DEVICE=cpu" \
            "(then GPUS counts processes)" | sed 's/ set GPUS=0, or/ set/' >&2
        exit 2
    fi
}

recipe_help() {
    local name about
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
    printf '\nSettings from the environment, of every recipe, with the values they have now:\n'
    sed -n 's/^    : "${\([A-Z_]*\):=.*}" # /\1 /p' "${BASH_SOURCE[0]}" | while read -r name about; do
        printf '  %-28s %s\n' "$name=${!name}" "$about"
    done
    printf "\nArguments go to vision_reference/train.py after the recipe's own, and so can change any of them.\n"
}

# Usage: share_batch GLOBAL_BATCH PROCESSES; sets BATCH, the images of a process at a time, unless the user has set it, and
# `accumulate`, so many of which make a step. PROCESSES: that the paper had; fewer take their share in several batches.
# The paper does not scale its learning rate with the batch, so the global batch is part of the recipe.
share_batch() {
    local global=$1 papers=$2 processes=$((GPUS * NODES)) share steps=1
    accumulate=()
    if [[ $BATCH =~ ^[1-9][0-9]*$ ]]; then
        ((global % (BATCH * processes))) || steps=$((global / BATCH / processes))
        ((BATCH * processes * steps == global)) ||
            echo "recipe: note: the global batch is $((BATCH * processes)), the paper's is $global" >&2
    elif [ -n "$BATCH" ]; then
        echo "recipe: BATCH is '$BATCH'; give a number from 1, or nothing for the paper's" >&2
        exit 2
    elif ((global % processes)); then
        echo "recipe: $processes processes cannot share the global batch of $global equally; set BATCH" >&2
        exit 2
    else
        share=$((global / processes))
        while ((share % steps || share / steps > global / papers)); do steps=$((steps + 1)); done
        BATCH=$((share / steps))
    fi
    if ((steps > 1)); then
        accumulate=(--accumulate "$steps")
        echo "recipe: $processes process(es), the paper had $papers: each step adds up $steps batches of $BATCH" \
            "(--accumulate $steps), so that the global batch stays $global" >&2
    fi
}
accumulate=()

# Usage: fill PATTERN NAME=VALUE...; PATTERN with each {NAME} replaced.
fill() {
    local text=$1 pair
    shift
    for pair in "$@"; do
        text=${text//"{${pair%%=*}}"/${pair#*=}}
    done
    echo "$text"
}

# Usage: torchvision_weights MODEL; the name of torchvision's first ImageNet weights for it.
torchvision_weights() {
    case "$1" in
        resnet18) echo ResNet18_Weights.IMAGENET1K_V1 ;;
        resnet50) echo ResNet50_Weights.IMAGENET1K_V1 ;;
        convnext_tiny) echo ConvNeXt_Tiny_Weights.IMAGENET1K_V1 ;;
        mobilenet_v2) echo MobileNet_V2_Weights.IMAGENET1K_V1 ;;
        efficientnet_b0) echo EfficientNet_B0_Weights.IMAGENET1K_V1 ;;
        *)
            echo "recipe: set INIT_WEIGHTS to what $1 starts from: a file or the name of torchvision's weights" >&2
            exit 2
            ;;
    esac
}

# Usage: needs FILE ADVICE; stops in one line where a run's starting point is not there (but not a dry run).
needs() {
    if [ -z "$DRY_RUN" ] && [ ! -e "$1" ] && [[ $1 != *_Weights.* ]]; then
        echo "recipe: no $1; $2" >&2
        exit 1
    fi
}

# Usage: train FOLDER EPOCHS ARGUMENT...; one run into OUTPUT/FOLDER by the runner of jobs, which skips it if finished
# and resumes it if begun. What it prints goes to OUTPUT/FOLDER/train.log.
train() {
    local folder=$OUTPUT/$1 epochs=$2
    shift 2
    runner=("$PYTHON" scripts/lib/jobs.py --node-rank "$NODE_RANK" -- "$folder")
    launch "$(basename "$folder")" --output-dir "$folder" --resume auto --keep-checkpoints 1 \
        --seed "$SEED" --batch-size "$BATCH" "${accumulate[@]}" --epochs "$epochs" "$@"
    runner=()
}

# Usage: launch NAME ARGUMENT...; train.py on all processes of all machines, started by the words in `runner`.
runner=()
launch() {
    local where=(--standalone) name=$1
    shift
    if ((NODES > 1)); then
        where=(--nnodes "$NODES" --node_rank "$NODE_RANK"
            --rdzv_backend c10d --rdzv_endpoint "$MASTER" --rdzv_id "$name")
    fi
    local command=("$PYTHON" scripts/lib/torchrun.py "${where[@]}" --nproc_per_node "$GPUS"
        vision_reference/train.py --data-path "$DATA" --device "$DEVICE" --workers "$WORKERS")
    [ "$DEVICE" = cpu ] || command+=(--require-gpu) # a broken driver does not mean a week on the CPU
    command+=("$@")
    if [ -n "$DRY_RUN" ]; then
        echo "${command[*]@Q}" | sed -E "s/'([A-Za-z0-9_.,:=/@%+-]+)'/\1/g"
    else
        "${runner[@]}" "${command[@]}"
    fi
}

# Usage: evaluate_all TEACHER PAPER ARGUMENT...; evaluates TEACHER_WEIGHTS and STUDENT_WEIGHTS for all alphas,
# temperatures and STUDENTS, then prints the alpha x T tables; PAPER names the published numbers to set beside.
evaluate_all() {
    local teacher=$1 paper=$2 student alpha temperature students
    shift 2
    read -ra students <<< "$STUDENTS"
    records=$(mktemp) # global: the trap outlives this function
    trap 'rm -f "$records"' EXIT
    for alpha in "${alphas[@]}"; do
        evaluate_one teacher "$teacher" "$alpha" 1 "$(fill "$TEACHER_WEIGHTS" "alpha=$alpha")" "$@"
        for student in "${students[@]}"; do
            for temperature in "${temperatures[@]}"; do
                evaluate_one student "$student" "$alpha" "$temperature" \
                    "$(fill "$STUDENT_WEIGHTS" "student=$student" "alpha=$alpha" "temperature=$temperature")" "$@"
            done
        done
    done
    [ -n "$DRY_RUN" ] || "$PYTHON" scripts/lib/alpha_t_table.py --paper "$paper" "$records"
}

evaluate_one() {
    local role=$1 model=$2 alpha=$3 temperature=$4 file=$5 result
    shift 5
    set -- --model "$model" --batch-size "$BATCH" --test-only --resume "$file" "$@"
    if [ -n "$DRY_RUN" ]; then
        launch evaluate "$@"
    elif [ ! -e "$file" ]; then
        echo "recipe: no $file; left out" >&2
    else
        echo "recipe: evaluating $file" >&2
        # Not through tee: opening /dev/stderr anew would overwrite a log that stderr goes to.
        result=$(launch evaluate "$@")
        printf '%s\n' "$result" >&2
        result=$(sed -nE 's/^Test: .*Acc@1 ([0-9.]+) +Acc@5 ([0-9.]+).*/"acc1": \1, "acc5": \2/p' <<< "$result")
        printf '{"role": "%s", "model": "%s", "alpha": %s, "temperature": %s, %s}\n' \
            "$role" "$model" "$alpha" "$temperature" "$result" >> "$records"
    fi
}
