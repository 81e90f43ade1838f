"""A hand-written FedAvg loop: no framework, one model, one institution after the other."""

from __future__ import annotations

import torch

from sovfed.simulations.benchmarks.simulators.workload import Clock, Job, Workload


def run(system: str, job: Job, rounds: int, clock: Clock) -> None:
    """McMahan et al. 2017, arXiv:1602.05629, Algorithm 1."""
    work = Workload(job)
    model = work.model()
    current = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for number in range(1, rounds + 1):
        total, records, right, tested = torch.zeros_like(current, dtype=torch.float64), 0, 0, 0
        for institution in job.cohort_of(number):
            site_records = work.part(institution)
            torch.nn.utils.vector_to_parameters(current.clone(), model.parameters())
            right += work.evaluate(model, site_records)[1]
            tested += len(site_records.test[1])
            work.train(model, site_records)
            count = len(site_records.train[1])
            total += count * torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()
            records += count
        current = (total / records).float()
        clock.accuracy = right / tested
        clock.mark()
    clock.weigh()
