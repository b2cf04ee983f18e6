# The CPU image with Ray, for the Ray cluster of infra/k8s/components/ray and the tasks that use it:
#   docker build --build-arg IMAGE=registry.example.com/bloomery-cpu:0.1.0 --file infra/image/ray.Dockerfile --tag registry.example.com/bloomery-ray:0.1.0 .
ARG IMAGE=ghcr.io/bloomery/bloomery-cpu:0.1.0
FROM ${IMAGE}
USER root
COPY constraints.txt /tmp/constraints.txt
RUN python3 -m pip install --no-compile --constraint /tmp/constraints.txt 'ray[client,default]' && rm /tmp/constraints.txt
USER 10001:10001
