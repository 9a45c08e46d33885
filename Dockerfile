# The toolkit on NVIDIA GPUs. Build:  docker build -t grpo-toolkit .
# Run:    docker run --rm --init --gpus all --ipc=host -v "$PWD/runs:/app/runs" grpo-toolkit run r1_tiny --out runs/r1-tiny
# devel rather than runtime: vLLM and Triton compile some kernels on first use. --init reaps workers, --ipc=host gives NCCL its shared memory.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PATH=/venv/bin:$PATH
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-dev python3-venv build-essential make git bubblewrap \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY . .
# A build sees no GPU, so it is told; nothing is kept of the download caches.
RUN make setup VENV=/venv KIND=gpu && rm -rf ~/.cache

ENTRYPOINT ["grpo"]
CMD ["--help"]
