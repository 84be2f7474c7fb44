"""One example client, against the real server: --example=NAME."""

import argparse
import os
import sys

import support  # first: it finds the harness
import harness
from plain_cases import PlainCases  # noqa: F401
from retry_cases import RetryCases  # noqa: F401
from secure_cases import SecureCases  # noqa: F401


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--example", required=True)
    parser.add_argument("--cpp_client", required=True)
    options, rest = parser.parse_known_args()
    support.example = options.example
    support.cpp_client = os.path.abspath(options.cpp_client)
    sys.argv[1:] = rest
    harness.main()


if __name__ == "__main__":
    main()
