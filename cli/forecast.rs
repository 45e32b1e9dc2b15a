//! What a run will take, before it: the kinds' estimates, in seconds of this machine.

use flow_engine::estimate::Estimate;
use flow_engine::events::Expected;
use flow_engine::plan::{Plan, StageId};
use flow_stages::bench::training_speed;

use crate::display::amounts::{about, bytes};

/// What a device has for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Probed {
    /// Operations a second, as [`Estimate::work`] counts them.
    pub speed: Option<f64>,
    /// Bytes of memory that are free.
    pub free: Option<u64>,
}

/// Opens a device and measures it for a moment. What cannot be found out is left open: a plan goes on without.
pub fn probe(device: &str, threads: usize) -> Probed {
    let Ok(device) = flow_shaders::device::open(device, threads) else { return Probed::default() };
    Probed { speed: training_speed(&device).ok(), free: device.free_memory() }
}

/// The stages that have an estimate, in the order of the plan.
pub fn estimates(plan: &Plan, stages: impl IntoIterator<Item = StageId>) -> Vec<(StageId, Estimate)> {
    stages.into_iter().filter_map(|id| Some((id, plan.estimate(id)?))).collect()
}

struct Stage {
    id: StageId,
    name: String,
    expected: Expected,
    smaller: Vec<String>,
}

/// What stages are expected to take.
#[derive(Default)]
pub struct Forecast {
    stages: Vec<Stage>,
    free: Option<u64>,
}

impl Forecast {
    /// The forecast of these estimates. The device is probed only where there is one.
    pub fn of(plan: &Plan, estimates: Vec<(StageId, Estimate)>, probe: impl FnOnce() -> Probed) -> Self {
        if estimates.is_empty() {
            return Self::default();
        }
        let Probed { speed, free } = probe();
        let seconds = |work: f64| speed.map(|speed| work / speed).filter(|s| s.is_finite());
        let stage = |(id, of): (StageId, Estimate)| Stage {
            id,
            name: plan.stage(id).name.clone(),
            expected: Expected { seconds: of.work.and_then(seconds), memory_bytes: of.memory_bytes },
            smaller: of.smaller,
        };
        Self { stages: estimates.into_iter().map(stage).collect(), free }
    }

    /// What a stage is expected to take.
    pub fn stage(&self, id: StageId) -> Option<Expected> {
        self.stages.iter().find(|s| s.id == id).map(|s| s.expected)
    }

    /// Each stage's name and what it is expected to take.
    pub fn lines(&self) -> impl Iterator<Item = (&str, String)> {
        self.stages.iter().map(|s| (s.name.as_str(), words(s.expected)))
    }

    /// What all of them take, where they are several.
    pub fn total(&self) -> Option<String> {
        if self.stages.len() < 2 {
            return None;
        }
        let sum = self.stages.iter().map(|s| s.expected.seconds).sum::<Option<f64>>();
        let largest = self.stages.iter().filter_map(|s| s.expected.memory_bytes).max();
        let time = sum.map(|s| format!("together {} on this machine", about(s)));
        let memory = largest.map(|m| format!("the largest {}", bytes(m)));
        Some(time.into_iter().chain(memory).collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    }

    /// One line for all of them.
    pub fn summary(&self) -> Option<String> {
        let total = match self.stages.as_slice() {
            [one] => words(one.expected),
            _ => self.total()?,
        };
        let names: Vec<&str> = self.stages.iter().map(|s| s.name.as_str()).collect();
        let whose = if names.len() > 4 { format!("{} stages", names.len()) } else { names.join(", ") };
        Some(format!("{whose}: {total}"))
    }

    /// Stages that plan more memory than is free, and what to do.
    pub fn notes(&self) -> Vec<String> {
        let note = |s: &Stage| {
            let (planned, free) = (s.expected.memory_bytes?, self.free?);
            let advice = match s.smaller.split_last() {
                None => "choose a smaller shape".into(),
                Some((one, [])) => format!("its recipe can take {one}"),
                Some((last, others)) => format!("its recipe can take {} or {last}", others.join(", ")),
            };
            (planned > free).then(|| format!("{}: plans {}, {} are free: {advice}", s.name, bytes(planned), bytes(free)))
        };
        self.stages.iter().filter_map(note).collect()
    }
}

/// Time and memory for people.
fn words(expected: Expected) -> String {
    let time = expected.seconds.map(|s| format!("{} on this machine", about(s)));
    time.into_iter().chain(expected.memory_bytes.map(bytes)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use flow_engine::Registry;
    use flow_engine::pipeline::{Overrides, Pipeline};

    use super::*;

    /// A plan of two stages that nobody estimates.
    fn plan() -> (tempfile::TempDir, Plan) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        std::fs::write(&file, "flow: 1\nstages:\n  a: { use: shell, with: { run: 'echo > $out' } }\n  student: { use: shell, with: { run: 'echo > $out' } }\n")
            .unwrap();
        let mut registry = Registry::new();
        flow_engine::command::shell::register(&mut registry);
        let plan = Plan::link(Pipeline::load(&file, &Overrides::default()).unwrap(), &registry).unwrap();
        (dir, plan)
    }

    fn forecast(of: &[(&str, Estimate)], probed: Probed) -> Forecast {
        let (_dir, plan) = plan();
        Forecast::of(&plan, of.iter().map(|(name, e)| (plan.find(name).unwrap(), e.clone())).collect(), || probed)
    }

    fn work(work: f64, memory: u64, smaller: &[&str]) -> Estimate {
        let smaller = smaller.iter().map(|s| (*s).to_owned()).collect();
        Estimate { work: Some(work), memory_bytes: Some(memory), smaller }
    }

    #[test]
    fn nothing_is_probed_for_stages_without_an_estimate() {
        let (_dir, plan) = plan();
        let none = estimates(&plan, plan.order().to_vec());
        let forecast = Forecast::of(&plan, none, || panic!("probed"));
        assert_eq!((forecast.lines().count(), forecast.total(), forecast.summary()), (0, None, None));
        assert!(forecast.notes().is_empty() && forecast.stage(plan.order()[0]).is_none());
    }

    #[test]
    fn one_stage_is_said_alone_and_several_together() {
        let probed = Probed { speed: Some(1e11), free: Some(4 << 30) };
        let one = forecast(&[("student", work(5.04e14, 9 << 28, &[]))], probed);
        assert_eq!(one.lines().collect::<Vec<_>>(), [("student", "about 1.4 h on this machine, 2.25 GiB".to_owned())]);
        assert_eq!(one.summary().unwrap(), "student: about 1.4 h on this machine, 2.25 GiB");
        assert_eq!((one.total(), one.notes().len()), (None, 0));
        let both = forecast(&[("a", work(2e12, 1 << 20, &[])), ("student", work(5.04e14, 9 << 28, &[]))], probed);
        assert_eq!(both.lines().next().unwrap().1, "about 20 s on this machine, 1.0 MiB");
        assert_eq!(both.total().unwrap(), "together about 1.4 h on this machine, the largest 2.25 GiB");
        assert_eq!(both.summary().unwrap(), "a, student: together about 1.4 h on this machine, the largest 2.25 GiB");
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_would_help() {
        let probed = Probed { speed: Some(1e11), free: Some(1 << 30) };
        let note = |smaller: &[&str]| forecast(&[("student", work(1e12, 3 << 30, smaller))], probed).notes().remove(0);
        let begins = "student: plans 3.00 GiB, 1.00 GiB are free: ";
        assert_eq!(note(&["x", "y", "z"]), format!("{begins}its recipe can take x, y or z"));
        assert_eq!(note(&["x"]), format!("{begins}its recipe can take x"));
        assert_eq!(note(&[]), format!("{begins}choose a smaller shape"));
    }

    #[test]
    fn a_device_that_cannot_be_measured_leaves_the_memory() {
        let unknown = forecast(&[("student", work(1e12, 1 << 30, &[]))], Probed::default());
        assert_eq!(unknown.lines().next().unwrap().1, "1.00 GiB");
        assert!(unknown.notes().is_empty());
    }
}
