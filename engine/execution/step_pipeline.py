"""Steps in flight: launch each plan, collect the results of completed steps, isolate the faults of both."""

from typing import NamedTuple

from engine.execution.fault_isolation import StepFault, catch_fault, isolate_faults
from engine.execution.model_runner import InFlightStep, ModelRunner
from engine.scheduling.step_plan import StepPlan, StepResult


class PendingStep(NamedTuple):
    """A launched step, or the result of its parts if the launch failed."""

    plan: StepPlan
    step: InFlightStep | StepResult


class StepPipeline:
    """Launches steps on the device. With asynchronous scheduling the newest step stays in flight, so that the device
    computes while the host plans the next one."""

    def __init__(self, runner: ModelRunner, is_asynchronous: bool) -> None:
        self._runner = runner
        self._is_asynchronous = is_asynchronous
        self.in_flight: list[PendingStep] = []  # at most one

    def advance(self, plan: StepPlan) -> list[tuple[StepPlan, StepResult]]:
        """Launch the plan, unless it is empty, and wait for the completed steps, oldest first.

        Raises FatalEngineError if the device is lost.
        """
        return [(pending.plan, self._finish(pending)) for pending in self._launch(plan)]

    def _launch(self, plan: StepPlan) -> list[PendingStep]:
        """Give the plan to the device; return the steps to complete now. These are all steps if a request found no
        block: requests that could be preempted for it must not be in flight when the next step is planned."""
        launched = [self._launch_step(plan)] if plan.chunks else []
        completed = self.in_flight + launched
        keeps_one = self._is_asynchronous and launched and not plan.num_blocked
        self.in_flight = completed[-1:] if keeps_one else []
        return completed[:-1] if keeps_one else completed

    def _launch_step(self, plan: StepPlan) -> PendingStep:
        if plan.blocks_to_zero:  # once, however often the step is tried: the next step may write to these blocks
            self._runner.zero_blocks(plan.blocks_to_zero)
        step = catch_fault(lambda: self._runner.launch(plan))
        return PendingStep(plan, self._isolate_faults(plan, step) if isinstance(step, StepFault) else step)

    def _finish(self, pending: PendingStep) -> StepResult:
        step = pending.step
        if isinstance(step, StepResult):
            return step
        result = catch_fault(lambda: self._runner.finish(step))
        return self._isolate_faults(pending.plan, result) if isinstance(result, StepFault) else result

    def _isolate_faults(self, plan: StepPlan, fault: StepFault) -> StepResult:
        self._runner.zero_drafts(plan)  # what is computed again has no drafts
        return isolate_faults(self._runner.run, plan, fault)
