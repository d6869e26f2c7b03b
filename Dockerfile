# syntax=docker/dockerfile:1
# One image for every service: the argument says which. `--build-arg EXTRAS=gateway` makes a small one for one service.
FROM python:3.11-slim-trixie AS build
ARG EXTRAS=gateway,governance,ingestion,annotation,training,federation,conversion,registry,inference,audit,edge,otlp
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
RUN python -m venv /opt/medmesh
WORKDIR /src
COPY pyproject.toml README.md ./
COPY libs libs
COPY services services
RUN --mount=type=cache,target=/var/cache/pip /opt/medmesh/bin/pip install ".[${EXTRAS}]"

FROM python:3.11-slim-trixie
# Folders that volumes are mounted on: a new volume takes over their owner and mode.
RUN groupadd --gid 10001 medmesh \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin medmesh \
 && install -d -o 10001 -g 10001 -m 0700 /srv/medmesh /srv/servers/nats /srv/servers/seaweedfs /var/spool/medmesh /var/lib/medmesh
COPY --from=build /opt/medmesh /opt/medmesh
ENV PATH=/opt/medmesh/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/medmesh
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "medmesh.service"]
