"""``python -m query_api``: answer queries until SIGTERM."""

from infra import logs
from infra.service import run
from infra.settings import load
from query_api.app import QuerySettings, main

if __name__ == "__main__":
    settings = load(QuerySettings)
    logs.configure("query_api", settings.log_level)
    run(main(settings))
