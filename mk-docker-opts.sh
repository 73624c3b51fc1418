#!/bin/sh
# Runs mk-docker-opts from this directory, without an installation. Needs Python 3.11 or newer, and nothing else.
exec env PYTHONPATH="$(dirname "$(readlink -f "$0")")/src" python3 -m pyflannel.programs.mk_docker_opts "$@"
