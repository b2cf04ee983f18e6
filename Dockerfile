# One Dockerfile, two images; both need a Python 3.11 on Linux x86-64, for which the packages are locked:
#   make image        ghcr.io/bloomery/bloomery-cpu:0.1.0
#   make image-gpu    ghcr.io/bloomery/bloomery-gpu:0.1.0, with CUDA 13's torch
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY . .
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE}
# The lock file in infra/image: cpu or gpu.
ARG LOCK=cpu
# Where the CPU build of torch is, beside the machine's own index; the CUDA build is on that.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    LOG_FORMAT=json HOME=/home/bloomery NUMBA_CACHE_DIR=/tmp/numba
# Nothing is resolved, so nothing is tried and left; what is published as source is built by the base's setuptools, for
# those of an isolated build would come without a hash; what is installed is trimmed in the same layer.
COPY infra/image /image
RUN python3 -m pip install --no-deps --no-compile --no-build-isolation --require-hashes --extra-index-url "${TORCH_INDEX}" --requirement "/image/${LOCK}.txt" \
    && HOME=/tmp python3 /image/trim.py && rm -rf /tmp/*
COPY --from=wheel /wheels /wheels
RUN python3 -m pip install --no-deps /wheels/*.whl && rm -r /wheels \
    && mkdir -p /home/bloomery && chown 10001:10001 /home/bloomery
# The commit that is built, for the lineage of the models that it promotes: --build-arg COMMIT=$(git rev-parse HEAD). Not
# before the packages are there: with another commit they would be installed anew.
ARG COMMIT=""
ENV BLOOMERY_COMMIT=${COMMIT}
# Numeric, because a pod with runAsNonRoot cannot look up a name.
USER 10001:10001
WORKDIR /home/bloomery
# No entry point: Kubeflow Pipelines brings a command of its own.
CMD ["bloomery", "--help"]
