"""The server's OpenAPI document against the server: thousands of requests, right ones and wrong ones, and no 5xx.

``make test-api`` runs it; ``make test`` leaves it out.
"""

import random
from collections import Counter
from math import ceil

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from test_server import Running, create_app, folders, make_service, tokenizer  # noqa: F401 - two are fixtures

from tunesmith.run.serving_access import Access

pytestmark = pytest.mark.api

CASES = 2000
MODELS = ("base", "sushi", "mix")
NEEDED = {"model", "messages", "prompt", "input", "lora_name", "max_tokens"}
ERROR = {"message", "type", "param", "code"}


def test_no_request_is_answered_with_a_fault_of_ours(folders):  # noqa: F811 - the fixture
    """Every operation, with bodies that its schema allows and with others; refusals have OpenAI's form."""
    statuses: Counter[tuple[str, str, int]] = Counter()
    faults: list[str] = []
    rng = random.Random(7)
    adapters = folders / "adapters"
    service = make_service(
        folders, f"dufu={adapters / 'dufu'}", f"sushi={adapters / 'sushi'}", "mix=1*dufu+1*sushi", max_tokens=8
    )
    with Running(create_app(service, Access())) as running:
        document = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
        operations = [found.ok() for found in document.get_all_operations()]
        asked = [(operation, mode) for operation in operations for mode in modes(operation)]

        def call(case, mode) -> None:
            if isinstance(case.body, dict):
                temper(case.body, rng, mode)
            response = case.call(base_url=running.url, timeout=60)
            statuses[case.operation.label, mode.name, response.status_code] += 1
            if response.status_code >= 500:
                faults.append(f"{response.status_code} {case.operation.label}: {case.body!r:.500}")
            elif response.status_code >= 400:
                error = response.json()["error"]
                wanted = {"message", "type"} if case.operation.path == "/v1/messages" else ERROR
                if set(error) != wanted or not isinstance(error["message"], str):
                    faults.append(f"{case.operation.label}: {error}")

        for operation, mode in asked:

            @seed(7)
            @settings(
                max_examples=ceil(CASES / len(asked)),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case) -> None:
                call(case, mode)  # noqa: B023 - called before the next round

            check()
        extra = [pair for pair in asked if pair[0].method == "post"]
        while statuses.total() < CASES:  # few bodies differ where a schema is small
            operation, mode = extra[statuses.total() % len(extra)]
            call(example(operation, mode, statuses.total()), mode)
    for (label, mode, status), count in sorted(statuses.items()):
        print(f"{label:<36}{mode:<10}{status}  {count}")
    print(f"{statuses.total()} cases")

    assert faults == []
    assert statuses.total() >= CASES
    answered = sum(count for (_, _, status), count in statuses.items() if status == 200)
    assert answered >= CASES // 20


def temper(body, rng, mode) -> None:
    """Let enough requests through: of a model that there is, of an allowed length, not with all fields at once."""
    if "model" in body and rng.random() < 0.9:
        body["model"] = rng.choice(MODELS)
    if mode is GenerationMode.POSITIVE:
        for name in [name for name in body if name not in NEEDED and rng.random() < 0.75]:
            del body[name]
        for name in ("max_tokens", "max_completion_tokens"):
            if name in body:
                body[name] = 5
        if "messages" in body and rng.random() < 0.7:  # chance writes hardly a dialogue in which all fits together
            body["messages"] = [{"role": "user", "content": rng.choice(["How is it?", "春风吹绿柳", "<|im_end|>", ""])}]


def modes(operation) -> list[GenerationMode]:
    """Wrong requests, too, where an operation takes anything that can be wrong."""
    takes = operation.method == "post"
    return [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if takes else [GenerationMode.POSITIVE]


def example(operation, mode, number):
    """One case of an operation, drawn by chance."""
    found = []

    @seed(number)
    @settings(
        max_examples=1, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def draw(case) -> None:
        found.append(case)

    draw()
    return found[0]
