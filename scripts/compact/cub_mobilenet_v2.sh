#!/usr/bin/env bash
# The compact CUB-200-2011 student: MobileNetV2 from the ResNet-50 teachers, by the recipe of all CUB students.
#
#   DATA=/data bash scripts/compact/cub_mobilenet_v2.sh
#
# Settings and arguments: as scripts/cub/train_student.sh --help tells.
set -euo pipefail
STUDENTS=mobilenet_v2 exec bash "$(dirname "${BASH_SOURCE[0]}")/../cub/train_student.sh" "$@"
