#!/usr/bin/env bash
# The compact ImageNet-1K student: EfficientNet-B0 from the ResNet-50 teachers, by the recipe of all ImageNet students.
#
#   DATA=/data/imagenet bash scripts/compact/imagenet_efficientnet_b0.sh
#
# Settings and arguments: as scripts/imagenet/train_student.sh --help tells.
set -euo pipefail
STUDENTS=efficientnet_b0 exec bash "$(dirname "${BASH_SOURCE[0]}")/../imagenet/train_student.sh" "$@"
