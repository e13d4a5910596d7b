"""A small cluster of Ray with an HTTP proxy, in a process that takes one command a line.

    python ray_cluster.py PORT
    python FILE      run a file that calls ``serve.run``
    config FILE      do what ``serve run FILE`` does
    delete NAME      stop the replicas of an application

Each is answered by a line: ``done``, or what went wrong. The end of the input ends the cluster.
"""

import sys
from pathlib import Path

import ray
from ray import serve
from ray.serve.scripts import cli


def run(command: str, argument: str) -> None:
    match command:
        case "python":
            exec(compile(Path(argument).read_text(), argument, "exec"), {"__name__": "__main__"})
        case "config":
            cli(["run", "--non-blocking", argument], standalone_mode=False)
        case "delete":
            serve.delete(argument)


def main() -> None:
    ray.init(
        num_cpus=2,
        object_store_memory=80 << 20,
        include_dashboard=False,
        log_to_driver=False,
        namespace="serve",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    answer("done")
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        try:
            run(command, argument)
            answer("done")
        except Exception as error:
            answer(" ".join(str(error).split()))
    serve.shutdown()
    ray.shutdown()


def answer(text: str) -> None:
    sys.stdout.write(f"\n> {text}\n")  # Ray writes there too
    sys.stdout.flush()


if __name__ == "__main__":
    main()
