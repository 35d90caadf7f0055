# smoe in two stages: a virtual environment is built in the first and copied into the second.
#   docker build -t smoe .                                                              CPU
#   docker build -t smoe:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .   CUDA
#   docker run --init -p 127.0.0.1:8000:8000 -v /path/to/checkpoint:/model:ro smoe serve /model
# Without arguments it serves the bundled model. Settings are flags or SMOE_* variables; the health check reads variables.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# g++ compiles the CPU library; CMake and Ninja come with the build back end.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/smoe \
    && /opt/smoe/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.11"
WORKDIR /src
COPY deploy/requirements.lock ./
RUN /opt/smoe/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE smoe.py ./
COPY model model
COPY engine engine
COPY server server
RUN /opt/smoe/bin/pip install --no-cache-dir --no-deps . && /opt/smoe/bin/pip check

FROM ${PYTHON_IMAGE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Triton compiles a C launcher for each of its kernels at run time.
# hadolint ignore=DL3008
RUN if [ "${TORCH_INDEX##*/}" != cpu ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/smoe /opt/smoe
# Group 0 may write to the home directory, so that any uid works (OpenShift picks its own). A new volume at .triton, where
# Triton keeps what it compiles, takes the owner of the directory in the image.
RUN useradd --uid 10001 --gid 0 --create-home --home-dir /home/smoe --shell /usr/sbin/nologin smoe \
    && mkdir /home/smoe/.triton && chown 10001:0 /home/smoe/.triton && chmod -R g=u /home/smoe
ENV HOME=/home/smoe \
    PATH=/opt/smoe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SMOE_HOST=0.0.0.0 \
    SMOE_PORT=8000
USER 10001:0
WORKDIR /home/smoe
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["/opt/smoe/bin/smoe", "health"]
ENTRYPOINT ["/opt/smoe/bin/smoe"]
CMD ["serve"]
