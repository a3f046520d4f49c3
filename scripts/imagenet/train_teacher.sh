#!/usr/bin/env bash
# ImageNet-1K teachers: ResNet-50 without and with label smoothing, 90 epochs.
#
#   DATA=/data/imagenet bash scripts/imagenet/train_teacher.sh
#   DRY_RUN=1 bash scripts/imagenet/train_teacher.sh          prints the commands
#
# DATA holds train/ and val/, one folder of images per class. Finished runs are skipped, begun ones resumed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/lib/recipe.sh
recipe_settings data/imagenet results/imagenet 8 "0.0 0.1" "" "$@"
share_batch 2048 8 # 8 GPUs with 256 images each

for alpha in "${alphas[@]}"; do
    train "teacher_resnet50_alpha$alpha" 90 \
        --model resnet50 --preset imagenet --loader torchvision --label-smoothing "$alpha" \
        --opt sgd --lr 0.1 --momentum 0.9 --weight-decay 1e-4 \
        --lr-scheduler steplr --lr-step-size 30 --lr-gamma 0.1 "$@"
done
