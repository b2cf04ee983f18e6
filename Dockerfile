# One Dockerfile, two images:
#   docker build -t ghcr.io/bloomery/bloomery:0.1.0-cpu .
#   docker build -t ghcr.io/bloomery/bloomery:0.1.0-gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY . .
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE}
# The commit that is built, for the lineage of the models that it promotes: --build-arg COMMIT=$(git rev-parse HEAD).
ARG COMMIT=""
# Where torch comes from: the CPU build by default, which is a tenth of the size of the CUDA one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    LOG_FORMAT=json HOME=/home/bloomery NUMBA_CACHE_DIR=/tmp/numba BLOOMERY_COMMIT=${COMMIT}
# torch first, in a layer of its own: it is large and changes least. What it needs comes with the rest, in our versions.
RUN python3 -m pip install --no-deps --index-url "${TORCH_INDEX}" torch==2.13.0
COPY --from=wheel /source/constraints.txt /wheels/
COPY --from=wheel /wheels /wheels
# psycopg2 is what the MLflow server of infra/k8s and the studies of searches need for PostgreSQL; nothing else imports
# it. optuna and cmaes are asked by the trials of such a search.
RUN python3 -m pip install --constraint /wheels/constraints.txt /wheels/*.whl psycopg2-binary optuna cmaes && rm -r /wheels \
    && mkdir -p /home/bloomery && chown 10001:10001 /home/bloomery
# Numeric, because a pod with runAsNonRoot cannot look up a name.
USER 10001:10001
WORKDIR /home/bloomery
# No entry point: Kubeflow Pipelines brings a command of its own.
CMD ["bloomery", "--help"]
