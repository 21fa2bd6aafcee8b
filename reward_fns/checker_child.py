"""Child process of `checker_pool`: reads [gold, answer] per line, writes true or false per line. Run as a script.

Only math-verify's LaTeX grammar reads the answers; its reader of plain expressions would pass them to Python's eval.
"""

import json
import logging
import resource
import sys

MEMORY = 1 << 30  # bytes of address space
CPU_SECONDS = 8  # per comparison; ends a child whose parent died while it was busy


def main() -> None:
    """Serve until standard input closes."""
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    config = [LatexExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        try:
            gold, answer = (parse(f"${text}$", config, parsing_timeout=None) for text in json.loads(line))
            equal = bool(gold) and bool(answer) and bool(verify(gold, answer, timeout_seconds=None))
        except Exception:
            equal = False
        print("true" if equal else "false", flush=True)


if __name__ == "__main__":
    main()
