#!/usr/bin/env bash
# CIFAR-100 as distillation methods are compared on it (Tian et al. 2020, arXiv 1910.10699): a teacher for each alpha, its
# students at each temperature, and the student on labels alone. 240 epochs each, the last one counts.
#
#   DATA=/data/cifar100 bash scripts/cifar100/run.sh
#   TEACHER=resnet32x4 STUDENTS=resnet8x4 SEED=1 OUTPUT=results/cifar100-1 DATA=/data/cifar100 bash scripts/cifar100/run.sh
#
# DATA holds train/ and val/, one folder of images per class. Finished runs are skipped, begun ones resumed; at the end
# the alpha x T table is printed. Settings of this recipe: TEACHER (resnet56), STUDENTS (resnet20), KD_WEIGHT (0.9).
# Published there (alpha = 0.0, T = 4): resnet56 72.34, resnet20 69.06, distilled 70.66; resnet32x4 79.42, resnet8x4
# 72.50, distilled 73.33.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings TEACHER STUDENTS KD_WEIGHT
: "${TEACHER:=resnet56}" "${STUDENTS:=resnet20}" "${KD_WEIGHT:=0.9}"
: "${AMP_DTYPE:=none}" "${CHECKPOINT:=checkpoint.pth}" # full precision and the last epoch, as published
recipe_settings data/cifar100 results/cifar100 1 "0.0 0.1" "1 4" "$@"
share_batch 64 1
TEACHER_WEIGHTS=$OUTPUT/teacher_${TEACHER}_alpha{alpha}/$CHECKPOINT
STUDENT_WEIGHTS=$OUTPUT/student_{student}_alpha{alpha}_T{temperature}/$CHECKPOINT

common=(--preset cifar100 --opt sgd --lr 0.05 --momentum 0.9 --weight-decay 5e-4
    --lr-scheduler multisteplr --lr-milestones 150 180 210 --lr-gamma 0.1 "${precision[@]}")
read -ra students <<< "$STUDENTS"
for student in "${students[@]}"; do
    train "labels_$student" 240 --model "$student" "${common[@]}" "$@"
done
for alpha in "${alphas[@]}"; do
    train "teacher_${TEACHER}_alpha$alpha" 240 --model "$TEACHER" --label-smoothing "$alpha" "${common[@]}" "$@"
    for student in "${students[@]}"; do
        for temperature in "${temperatures[@]}"; do
            train "student_${student}_alpha${alpha}_T$temperature" 240 \
                --model "$student" --teacher "$TEACHER" --teacher-weights "$(fill "$TEACHER_WEIGHTS" "alpha=$alpha")" \
                --kd-temperature "$temperature" --kd-weight "$KD_WEIGHT" "${common[@]}" "$@"
        done
    done
done
evaluate_all "$TEACHER" cifar100 --preset cifar100
