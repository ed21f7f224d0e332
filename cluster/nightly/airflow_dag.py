"""A night in Airflow (2.9 or newer): the run, then what depends on its tables.

Put it into the folder of DAGs, and `nightly.sh` where the worker finds it. The worker only starts the run: with `--address` in
OPTIONS the work is done on a Ray cluster.
"""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # before Airflow 3
    from airflow.operators.bash import BashOperator

INPUT = "s3://footage/news/"
OUTPUT = "s3://tables/news"
OPTIONS = ["--preset", "standard", "--max-hours", "6"]
NIGHTLY = "/opt/clipmill/nightly.sh"

with DAG(
    dag_id="clipmill_news",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # a night that was missed is made up for by the next one
    max_active_runs=1,
    # Nothing is lost by trying again: a run goes on where the one before has stopped.
    default_args={"retries": 2, "retry_delay": timedelta(minutes=30)},
) as dag:
    annotate = BashOperator(
        task_id="annotate",
        # The blank keeps Airflow from taking what ends in .sh for a template.
        bash_command=f"{shlex.join([NIGHTLY, *OPTIONS])} ",
        env={"INPUT": INPUT, "OUTPUT": OUTPUT},
        append_env=True,
        skip_on_exit_code=75,  # the night before is still at work
    )
