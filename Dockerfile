# One image for the coordinator, the miner and the submitter of compose.yaml.
#
#   docker build -t aitbc-aps-miner .
#   docker build --build-arg BASE=python:3.13-slim --build-arg PACKAGES=ffmpeg .
#
# Any base will do that has Python 3.11 or newer, its venv module and useradd. Wheels
# that lie in .compose/wheels are taken instead of asking a package index.

ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
COPY . .
# pip and setuptools leave again: nothing is installed at run time.
RUN set -e; \
    if [ -d .compose/wheels ]; then \
        export PIP_NO_INDEX=1 PIP_FIND_LINKS=/src/.compose/wheels; \
    fi; \
    python3 -m venv /opt/miner; \
    /opt/miner/bin/pip install --no-cache-dir --disable-pip-version-check \
        '.[coordinator]'; \
    /opt/miner/bin/pip uninstall --quiet --yes setuptools pip; \
    install -D -m 644 config.toml.example /opt/miner/etc/config.toml; \
    ln -s "$(/opt/miner/bin/python -I -c \
        'from aitbc_aps_miner.reference_coordinator.samples import DATA; print(DATA)')" \
        /opt/miner/samples

FROM ${BASE}
# Programs that jobs may need, for example ffmpeg.
ARG PACKAGES=
RUN set -e; \
    if [ -n "${PACKAGES}" ]; then \
        apt-get update; \
        apt-get install --yes --no-install-recommends ${PACKAGES}; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    groupadd --gid 10001 miner; \
    useradd --uid 10001 --gid miner --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin miner; \
    install -d -o miner -g miner -m 700 /var/lib/aitbc /var/lib/aitbc/miner \
        /var/lib/aitbc/miner/jobs; \
    install -d /etc/aitbc; \
    ln -s /opt/miner/etc /etc/aitbc/miner
COPY --from=build /opt/miner /opt/miner
ENV PATH=/opt/miner/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# A number, so that "must not run as root" can be checked without reading passwd.
USER 10001:10001
WORKDIR /var/lib/aitbc/miner
VOLUME /var/lib/aitbc/miner
# As PID 1 the miner drains on SIGTERM: no new jobs, running ones get their time.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8479/healthz', timeout=4)"]
CMD ["aitbc-aps-miner", "run", "/etc/aitbc/miner/config.toml"]
