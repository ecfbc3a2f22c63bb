# `cascade serve` on a CPU: docker build --tag dreamcascade . && docker run --publish 8000:8000 dreamcascade
FROM python:3.12-slim AS build

# Where torch comes without CUDA; empty for a registry that offers that build itself.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints-cpu.txt ./
COPY cascade cascade
COPY kernels kernels
COPY export export
COPY configs configs
RUN python -m venv /opt/cascade \
  && /opt/cascade/bin/pip install --no-cache-dir --constraint constraints-cpu.txt '.[export,serve]'

FROM python:3.12-slim

RUN useradd --uid 10001 --create-home cascade
COPY --from=build /opt/cascade /opt/cascade
ENV PATH=/opt/cascade/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s --timeout=5s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Signals reach the server itself: it ends when what was asked is drawn, within --drain seconds.
ENTRYPOINT ["cascade", "serve", "--host", "0.0.0.0"]
