#!/usr/bin/env bash
# ImageNet-1K students distilled from the ResNet-50 teachers, 200 epochs, for each network, alpha and temperature.
#
#   DATA=/data/imagenet bash scripts/imagenet/train_student.sh
#   STUDENTS=resnet18 ALPHAS=0.1 TEMPERATURES="1 3" bash scripts/imagenet/train_student.sh
#   TEACHER_WEIGHTS='authors/resnet50_{alpha}.pth.tar' bash scripts/imagenet/train_student.sh
#
# Settings of this recipe: STUDENTS (torchvision networks; "resnet18 resnet50"), TEACHER_WEIGHTS (file with {alpha} in
# its name; what train_teacher.sh leaves), LOADER (dali), DALI_DEVICE (cpu, as in the paper; gpu is faster).
# The learning rate is warmed up per iteration and not scaled with the batch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings STUDENTS TEACHER_WEIGHTS LOADER DALI_DEVICE
recipe_settings data/imagenet results/imagenet 8 "0.0 0.1" "1 2 3 64" "$@"
share_batch 2048 8 # 8 GPUs with 256 images each
: "${TEACHER_WEIGHTS:=$OUTPUT/teacher_resnet50_alpha{alpha\}/$CHECKPOINT}"
read -ra students <<< "${STUDENTS:-resnet18 resnet50}"
loader=(--loader "${LOADER:-dali}")
[ "${LOADER:-dali}" != dali ] || loader+=(--dali-device "${DALI_DEVICE:-cpu}")

for student in "${students[@]}"; do
    for alpha in "${alphas[@]}"; do
        teacher=$(fill "$TEACHER_WEIGHTS" "alpha=$alpha")
        needs "$teacher" "train it with scripts/imagenet/train_teacher.sh, or set TEACHER_WEIGHTS"
        for temperature in "${temperatures[@]}"; do
            train "student_${student}_alpha${alpha}_T$temperature" 200 \
                --model "$student" --preset imagenet "${loader[@]}" \
                --teacher resnet50 --teacher-weights "$teacher" --kd-temperature "$temperature" --kd-weight 1.0 \
                --opt sgd --lr 0.1 --momentum 0.9 --weight-decay 1e-4 \
                --lr-scheduler steplr --lr-step-size 80 --lr-gamma 0.1 \
                --lr-warmup-epochs 5 --lr-warmup-per-step "${precision[@]}" "$@"
        done
    done
done
