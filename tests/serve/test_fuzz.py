"""What no person would send: requests made from the server's own description of itself."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_nothing_that_is_sent_is_a_fault_of_the_servers(
    serve: Callable[..., Any], mode: GenerationMode
) -> None:
    answered: list[tuple[str, int]] = []
    fixed = settings(
        max_examples=25,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
        deadline=None,
    )
    with serve() as served:
        schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
        for result in schema.get_all_operations():
            operation = result.ok()

            @fixed
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_it(case: Any) -> None:
                if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
                    case.body |= {"model": "tiny", "size": "auto"}  # else nothing is ever drawn
                answer = case.call_and_validate(checks=CHECKS)
                assert answer.headers["x-request-id"]
                answered.append((case.operation.label, answer.status_code))

            if mode is GenerationMode.POSITIVE or operation.body or operation.path_parameters:
                try_it()
        assert served.idle()
    assert len(answered) > 100
    drawn = ("POST /v1/images/generations", 200)
    assert (drawn in answered) == (mode is GenerationMode.POSITIVE)
