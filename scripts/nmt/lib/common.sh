# Sourced by the training scripts: the recipe's defaults, each overridable from the environment, and how runs are started.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
[ -d "$root/.venv/bin" ] && PATH="$root/.venv/bin:$PATH"

# Prints the comment at the script's head and ends, if that is what was asked for.
help_if_asked() {
    if [[ "${1:-}" =~ ^(-h|--help)$ ]]; then
        sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0"
        exit 0
    fi
}

need_data_and_out() {
    PAIRS=$(python "$root/scripts/nmt/lib/choose_pairs.py" "${DATA:-}" "${PAIRS:-}")
    if [ -z "${OUT:-}" ]; then
        echo "$(basename "$0"): OUT is not set; set it to the folder for what is trained, such as results/experts" >&2
        exit 2
    fi
}

# The recipe of Tan et al. (2019) for IWSLT. Their text names no number of epochs: 50 is ours.
recipe=(
    --arch "${ARCH:-transformer_iwslt_de_en}" --share-all-embeddings
    --encoder-layers "${ENCODER_LAYERS:-6}" --decoder-layers "${DECODER_LAYERS:-6}"
    --encoder-embed-dim "${EMBED_DIM:-512}" --decoder-embed-dim "${EMBED_DIM:-512}"
    --encoder-ffn-embed-dim "${FFN_DIM:-1024}" --decoder-ffn-embed-dim "${FFN_DIM:-1024}"
    --encoder-attention-heads "${HEADS:-4}" --decoder-attention-heads "${HEADS:-4}"
    --dropout "${DROPOUT:-0.3}" --label-smoothing "${LABEL_SMOOTHING:=0.1}"
    --optimizer adam --adam-betas "${ADAM_BETAS:-(0.9, 0.98)}" --clip-norm "${CLIP_NORM:-0}"
    --lr "${LR:-5e-4}" --lr-scheduler inverse_sqrt
    --warmup-updates "${WARMUP_UPDATES:-4000}" --warmup-init-lr "${WARMUP_INIT_LR:-1e-7}" --stop-min-lr "${MIN_LR:-1e-9}"
    --max-tokens "${MAX_TOKENS:-4096}" --update-freq "${UPDATE_FREQ:-1}" --max-epoch "${MAX_EPOCH:-50}" --seed "${SEED:-1}"
    --no-epoch-checkpoints --log-format json --log-interval "${LOG_INTERVAL:-20}"
)

# Without a GPU: as many runs side by side as there are cores, one thread each, because small models gain little from a
# second thread. Loader workers only cost there.
cores=$(env --unset OMP_NUM_THREADS nproc) # which would otherwise count threads instead of cores
if [ -z "${CPU:-}" ]; then
    CPU=1
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then CPU=0; fi
fi
if [ "$CPU" = 1 ]; then
    recipe+=(--cpu --num-workers 0)
    JOBS=${JOBS:-$cores}
    # glibc returns big blocks to the system at every free; keeping them makes training 20 % faster.
    export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-8589934592}
    export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
else
    JOBS=${JOBS:-1}
fi

# keep_vocabulary PAIRS DIR [PAIRS DIR]...: what the checkpoints of each run need beside them to translate plain text.
keep_vocabulary() {
    [ "${DRY_RUN:-0}" = 1 ] || python "$root/scripts/nmt/lib/keep_vocabulary.py" "$DATA" "$@"
}

# start_runs DIR COMMAND... [--- DIR COMMAND...]...
start_runs() {
    local options=(--jobs "$JOBS")
    [ "${DRY_RUN:-0}" = 1 ] && options+=(--dry-run)
    exec python "$root/scripts/lib/jobs.py" "${options[@]}" -- "$@"
}
