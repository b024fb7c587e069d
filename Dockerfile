# CPU:          docker build -t inat-ft .
# NVIDIA GPUs:  docker build -t inat-ft --build-arg TORCH=cu128 .
FROM python:3.12-slim
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH}
ARG PIP_INDEX_URL
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch torchvision --index-url ${TORCH_INDEX}
COPY . /src
RUN pip install --no-cache-dir '/src[demo,onnx]'
RUN useradd --create-home --home-dir /data user && mkdir /cache && chmod 1777 /cache /data
ENV HOME=/data XDG_CACHE_HOME=/cache
USER user
WORKDIR /data
RUN inat-ft doctor
ENTRYPOINT ["inat-ft"]
CMD ["--help"]
