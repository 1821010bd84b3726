"""What follows when ranks die in a job that must make room but may still run."""

from launch.supervise.decide import Facts, Failure, JobFacts, decide


def test_a_crash_in_a_preempted_job_goes_back_into_the_queue_however_often():
    refused = Failure(None, "srun launched no ranks", "never_started")
    for vain in (0, 5):
        facts = Facts(failure=refused, vain=vain, job=JobFacts(preempted=True))
        decision = decide(facts)
        assert (decision.next, decision.cause) == ("requeue", "preemption")
    facts = Facts(failure=refused, vain=5, job=JobFacts(preempted=False))
    assert decide(facts).next == "give_up"
