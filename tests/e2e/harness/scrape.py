"""Takes the metrics as Prometheus would, with Prometheus's own parser."""

from prometheus_client.parser import text_string_to_metric_families

from .gate import Gate

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(gate: Gate) -> Series:
    """All of nimgate's series, as Prometheus would take them from the metrics listener."""
    answer = gate.metrics.send("GET", "/metrics")
    assert answer.status == 200
    series: Series = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            if not sample.name.startswith("nimgate_"):
                continue
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in series, f"twice: {sample}"
            series[key] = sample.value
    return series


def value(series: Series, name: str, **labels: str) -> float:
    """The sum of the series of that name that carry these labels."""
    return sum(
        number
        for (series_name, series_labels), number in series.items()
        if series_name == name and labels.items() <= set(series_labels)
    )


def labels(series: Series, name: str) -> list[dict[str, str]]:
    """The labels of each series of that name."""
    return [dict(found) for (series_name, found) in series if series_name == name]
