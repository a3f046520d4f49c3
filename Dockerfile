# Everything of this project for NVIDIA GPUs: both frameworks, DALI, the locked packages. See README for how to run it.
#   docker build --tag lskd .
#   docker run --gpus all --ipc host -v /data/imagenet:/data:ro -v "$PWD/results:/home/lskd/lskd/results" \
#       -e DATA=/data lskd bash scripts/imagenet/train_teacher.sh
# The base image brings the CUDA runtime and what the driver needs; PyTorch's and DALI's packages bring their libraries.
FROM nvidia/cuda:12.4.1-base-ubuntu22.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never

# Ubuntu's archive keeps no old versions, so pinned ones would stop this from building one day.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgomp1 python3.10 python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m pip install --no-cache-dir uv==0.13.9 \
    && useradd --create-home --uid 1000 lskd

WORKDIR /home/lskd/lskd
COPY .python-version ./
COPY requirements requirements

# The locked packages change seldom, the source often: so they come first. fairseq is compiled while it is installed; the
# compiler does not stay.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3.10-dev \
    && uv venv --python /usr/bin/python3.10 .venv \
    && uv pip sync --require-hashes requirements/python3.10.txt \
    && apt-get purge --yes --auto-remove g++ python3.10-dev \
    && rm -rf /var/lib/apt/lists/* \
    && chown lskd:lskd . .venv .venv/bin .venv/lib/python3.10/site-packages
# A layer of its own: DALI is a gigabyte that pulls and caches apart from the rest.
# hadolint ignore=DL3059
RUN uv pip install --require-hashes --no-deps --requirement requirements/python3.10-dali.txt

COPY --chown=lskd:lskd . .
USER 1000
# Finds every package in its place and adds the project itself.
RUN bash scripts/setup.sh
ENV PATH=/home/lskd/lskd/.venv/bin:$PATH

HEALTHCHECK --interval=10m --timeout=2m --start-period=10s --retries=2 \
    CMD ["python", "scripts/healthcheck.py"]
CMD ["bash"]
