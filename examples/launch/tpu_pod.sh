#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice:
#
#     examples/launch/tpu_pod.sh my-slice us-central2-b --dataset tissuemnist --out gs-mount/tissue
#
# flaxmed is to be installed on every host, and the folder of --out to be one that all of them see.
# The hosts find one another: --distributed needs no words there.
set -euo pipefail

name=$1 zone=$2
shift 2
printf -v command '%q ' flaxmed train --distributed "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
