# A serving image: the CTranslate2 backend, no torch. Build: docker build -t pangu-coder2 .
# Run:   docker run -p 8000:8000 -v /path/to/artifact:/artifact:ro pangu-coder2
# For a GPU use an image with CUDA 12's cuBLAS as base, and --device cuda.
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[serve]"
RUN useradd --no-create-home pangu
USER pangu
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
# Exec form: SIGTERM reaches the server, which finishes running requests and exits with 0.
ENTRYPOINT ["pangu-serve", "/artifact", "--host", "0.0.0.0"]
