#!/usr/bin/env bash
# CUB-200-2011 teachers: ResNet-50 that starts from the ImageNet teacher of the same alpha, 90 epochs.
#
#   DATA=/data bash scripts/cub/train_teacher.sh --download      fetches CUB_200_2011.tgz where it is not there
#   INIT_WEIGHTS='authors/resnet50_{alpha}.pth.tar' bash scripts/cub/train_teacher.sh
#
# Setting of this recipe: INIT_WEIGHTS (file with {alpha} in its name; what scripts/imagenet/train_teacher.sh leaves).
# DATA holds CUB_200_2011/. Finished runs are skipped, begun ones resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
own_settings INIT_WEIGHTS
recipe_settings data/cub results/cub 1 "0.0 0.1" "" "$@"
share_batch 256 1
: "${INIT_WEIGHTS:=results/imagenet/teacher_resnet50_alpha{alpha\}/$CHECKPOINT}"

for alpha in "${alphas[@]}"; do
    start=$(fill "$INIT_WEIGHTS" "alpha=$alpha")
    needs "$start" "train it with scripts/imagenet/train_teacher.sh, or set INIT_WEIGHTS"
    train "teacher_resnet50_alpha$alpha" 90 \
        --dataset cub200 --model resnet50 --init-weights "$start" --preset cub --loader torchvision \
        --label-smoothing "$alpha" --opt sgd --lr 0.01 --momentum 0.9 --weight-decay 1e-4 \
        --lr-scheduler steplr --lr-step-size 30 --lr-gamma 0.1 "${precision[@]}" "$@"
done
