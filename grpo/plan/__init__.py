"""What will a run do, what does it need, and does it fit? A module for each question; ``grpo.plan.plan`` asks them all.

    stages        which stage starts from what, and which are done
    origins       whether what is done was made from what is here now
    changes       how the recipe differs from the shipped one
    architecture  the shapes of each stage's model, weights or no weights
    hardware      what there is to run on
    memory        what each process holds on its device, and whether that fits
    work          tokens and arithmetic of each stage
    duration      how long that takes, by stated or measured rates
    rows          rows kept and dropped, and what a prompt looks like
    contacts      ports, downloads, other people's code
    disk          what is written

Importing this loads no torch; memory and measurements do, when they are asked.
"""

from grpo.run.stage_states import PlannedStage, make_plan, places

__all__ = ["PlannedStage", "make_plan", "places"]
