#!/usr/bin/env bash
# CIFAR-10, the paper's question at 32x32: ResNet-18 teachers with and without label smoothing, MobileNetV2 students.
#
#   DATA=/data/cifar10 bash scripts/cifar10/run.sh
#   DEVICE=cpu AMP_DTYPE=none TEACHER_EPOCHS=4 STUDENT_EPOCHS=4 DATA=/data/cifar10 bash scripts/cifar10/run.sh
#
# DATA holds train/ and val/, one folder of images per class. Finished runs are skipped, begun ones resumed; at the end
# the alpha x T table is printed. Settings of this recipe: TEACHER_EPOCHS (30), STUDENT_EPOCHS (30).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings TEACHER_EPOCHS STUDENT_EPOCHS
recipe_settings data/cifar10 results/cifar10 1 "0.0 0.1" "1 3" "$@"
share_batch 128 1
: "${TEACHER_EPOCHS:=30}" "${STUDENT_EPOCHS:=30}"
TEACHER_WEIGHTS=$OUTPUT/teacher_resnet18_alpha{alpha}/$CHECKPOINT
STUDENT_WEIGHTS=$OUTPUT/student_{student}_alpha{alpha}_T{temperature}/$CHECKPOINT
STUDENTS=mobilenet_v2

data=(--preset cifar10 --loader dali)
optimization=(--opt sgd_nesterov --lr 0.05 --momentum 0.9 --weight-decay 5e-4 --lr-scheduler cosineannealinglr
    --lr-warmup-epochs 1 --lr-warmup-per-step "${precision[@]}")
for alpha in "${alphas[@]}"; do
    train "teacher_resnet18_alpha$alpha" "$TEACHER_EPOCHS" \
        --model resnet18 --label-smoothing "$alpha" "${data[@]}" "${optimization[@]}" "$@"
    for temperature in "${temperatures[@]}"; do
        train "student_mobilenet_v2_alpha${alpha}_T$temperature" "$STUDENT_EPOCHS" \
            --model mobilenet_v2 --teacher resnet18 --teacher-weights "$(fill "$TEACHER_WEIGHTS" "alpha=$alpha")" \
            --kd-temperature "$temperature" --kd-weight 1.0 "${data[@]}" "${optimization[@]}" "$@"
    done
done
evaluate_all resnet18 cifar10 "${data[@]}"
