# The commands on top of the torch that the base image has: it is kept, never replaced.
#   SDAA:  docker build --tag imagenet-resnet .
#   CUDA:  docker build --tag imagenet-resnet --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu22.04 .
#   CPU:   docker build --tag imagenet-resnet --build-arg BASE=python:3.11-slim .
#   run:   docker run --rm --net=host --ipc=host --device /dev/tcaicard0 -v /data:/data \
#              imagenet-resnet resnet train --shards /data/shards --cards 1 --out /data/run
# The base needs apt and bash. BuildKit is not needed.
ARG BASE=jfrog.tecorigin.net/tecotp-docker/release/ubuntu22.04/x86_64/pytorch:3.1.0-torch_sdaa3.1.0
FROM ${BASE}

# The conda environment of the vendor's image that has torch_sdaa. It counts only where conda's
# `activate` is on PATH; a base with another conda takes --build-arg CONDA_ENV=base.
ARG CONDA_ENV=torch27_env_py310
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]

# One file says how to get at Python, for the steps below and for every command at run time.
RUN { \
      if [ -f /opt/tecoai/setvars.sh ]; then echo 'source /opt/tecoai/setvars.sh || true'; fi; \
      if conda=$(type -P activate); then echo "source '$conda' '$CONDA_ENV' || exit 1"; fi; \
      echo 'export PATH="/opt/imagenet-resnet/.venv/bin:$PATH"'; \
    } > /etc/imagenet-resnet.sh

# A compiler and headers for pillow-simd, jpegtran for lossless transcoding; a Python where the
# base has none, and what a Debian Python lacks to make environments and to compile.
RUN source /etc/imagenet-resnet.sh; \
    packages='make gcc libc6-dev zlib1g-dev libjpeg-dev libjpeg-turbo-progs'; \
    case "$(type -P python3)" in ''|/usr/bin/*) packages="$packages python3-dev python3-venv" ;; esac; \
    apt-get update; \
    apt-get install --yes --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/*

WORKDIR /opt/imagenet-resnet
COPY . .
RUN source /etc/imagenet-resnet.sh; \
    make simd EXTRAS=export,report; \
    imagenet-prep --help > /dev/null; \
    resnet --help > /dev/null

# `docker exec` has the commands too; only the vendor's own variables need the entry point.
ENV PATH=/opt/imagenet-resnet/.venv/bin:$PATH
WORKDIR /workspace
ENTRYPOINT ["/bin/bash", "-c", "source /etc/imagenet-resnet.sh && exec \"$0\" \"$@\""]
CMD ["resnet", "--help"]
