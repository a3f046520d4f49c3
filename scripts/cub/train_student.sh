#!/usr/bin/env bash
# CUB-200-2011 students distilled from the ResNet-50 teachers, 200 epochs, for each network, alpha and temperature.
#
#   DATA=/data bash scripts/cub/train_student.sh
#   STUDENTS=convnext_tiny ALPHAS=0.1 TEMPERATURES=1 bash scripts/cub/train_student.sh
#
# Settings of this recipe: STUDENTS (torchvision networks; "resnet18 resnet50 convnext_tiny"), TEACHER_WEIGHTS (file
# with {alpha} in its name; what train_teacher.sh leaves), INIT_WEIGHTS (what students start from; torchvision's first
# ImageNet weights).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings STUDENTS TEACHER_WEIGHTS INIT_WEIGHTS
recipe_settings data/cub results/cub 1 "0.0 0.1" "1 2 3 64" "$@"
share_batch 256 1
: "${TEACHER_WEIGHTS:=$OUTPUT/teacher_resnet50_alpha{alpha\}/$CHECKPOINT}"
read -ra students <<< "${STUDENTS:-resnet18 resnet50 convnext_tiny}"

for student in "${students[@]}"; do
    start=${INIT_WEIGHTS:-$(torchvision_weights "$student")}
    for alpha in "${alphas[@]}"; do
        teacher=$(fill "$TEACHER_WEIGHTS" "alpha=$alpha")
        needs "$teacher" "train it with scripts/cub/train_teacher.sh, or set TEACHER_WEIGHTS"
        for temperature in "${temperatures[@]}"; do
            train "student_${student}_alpha${alpha}_T$temperature" 200 \
                --dataset cub200 --model "$student" --init-weights "$start" --preset cub --loader torchvision \
                --teacher resnet50 --teacher-weights "$teacher" --kd-temperature "$temperature" --kd-weight 1.0 \
                --opt sgd --lr 0.01 --momentum 0.9 --weight-decay 1e-3 \
                --lr-scheduler steplr --lr-step-size 80 --lr-gamma 0.1 "${precision[@]}" "$@"
        done
    done
done
