# docker build -t patchcast .
# docker run --rm -v "$PWD/runs:/app/runs" patchcast demo
FROM python:3.11-slim
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# The wheels of torch run on a CPU and, with `docker run --gpus all`, on a GPU.
RUN pip install --no-cache-dir -c constraints.txt ".[demo,data,export,tensorboard]"
# Runs, data and the cache are mounted or written here.
WORKDIR /app
ENV XDG_CACHE_HOME=/app/.cache
ENTRYPOINT ["patchcast"]
CMD ["--help"]
