# The page as an image; docs/serving.md says how to use it.
#   docker build -t edit-a-face .                                    for CPUs
#   docker build -t edit-a-face:cuda --build-arg TORCH=cu128 .        for Nvidia GPUs
FROM python:3.12-slim

# Which builds of torch: cpu, or one for CUDA, which brings its libraries along (https://pytorch.org/get-started).
ARG TORCH=cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GRADIO_ANALYTICS_ENABLED=False \
    E4E_CACHE=/cache/models HF_HOME=/cache/huggingface GRADIO_TEMP_DIR=/tmp/gradio

WORKDIR /app
COPY requirements.txt .
# torch and torchvision first and from one index: PyPI's come with CUDA, 3 GB that a CPU has no use for.
RUN grep -E "^torch" requirements.txt > /tmp/torch.txt \
    && pip install -r /tmp/torch.txt --index-url "https://download.pytorch.org/whl/${TORCH}" \
    && pip install -r requirements.txt \
    && rm /tmp/torch.txt

COPY . .

# The page needs no rights: it writes downloaded models to /cache and temporary files to /tmp.
RUN useradd --create-home --uid 1000 face && mkdir /cache && chown face /cache
USER face
VOLUME /cache

EXPOSE 7860
# A first start may download a model before the page listens.
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=9)"]
# As Ctrl+C: Python as the first process of a container would ignore a SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]
