"""What fragmentation costs in a small fleet; ``make bench BENCH=placement`` simulates a large one."""

from tests.unit.placement.mix import simulate

HOSTS, REQUESTS = 125, 1500
LIMIT = 0.01


def test_requests_for_whole_hosts_are_hardly_ever_refused_unless_models_are_spread() -> None:
    runs = {
        strategy: [simulate(strategy, seed, hosts=HOSTS, requests=REQUESTS) for seed in seeds]
        for strategy, seeds in (("auto", (1, 2, 3)), ("binpack", (1,)), ("spread", (1,)))
    }
    for strategy, some in runs.items():
        print(strategy, {gpus: [round(run.share(gpus), 4) for run in some] for gpus in (1, 2, 4, 8)})
    asked, refused = (sum(getattr(run, name)[8] for run in runs["auto"]) for name in ("asked", "refused"))
    assert asked > 200
    assert refused <= LIMIT * asked
    assert all(run.share(gpus) == 0 for run in runs["auto"] for gpus in (1, 2, 4))
    assert runs["spread"][0].share(8) > 0.5, "else this shows nothing"
