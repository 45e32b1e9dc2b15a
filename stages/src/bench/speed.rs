//! How fast a device is at what a training does most, float products, and how fast it trains for that.

use std::time::Instant;

use flow_engine::plugin::StageError;
use flow_lm::rng::Rng;
use flow_shaders::device::Device;
use flow_shaders::kernels::gemm;
use flow_shaders::program::Program;

/// Rows, columns and length of the sums: enough tiles for a GPU, and a few milliseconds of two CPU cores.
const SHAPE: (usize, usize, usize) = (1024, 1024, 512);

/// Products that are waited for together: the first number of them that takes [`LONG`] counts.
const COUNTS: [usize; 6] = [1, 4, 16, 64, 256, 1024];

/// Seconds after which starting and waiting no longer show.
const LONG: f64 = 0.04;

/// Operations a second of float products, measured in about an eighth of a second.
pub fn product_speed(device: &Device) -> Result<f64, StageError> {
    let (m, n, k) = SHAPE;
    let mut program = Program::default();
    let [a, b, c] = [("a", m * k), ("b", k * n), ("c", m * n)].map(|(name, words)| program.persistent(name, words));
    let shape = gemm::Shape { m: m as u32, n: n as u32, k: k as u32, add: 0, symmetric: 0 };
    let lists = COUNTS.map(|count| {
        let list = program.list(format!("{count} products"));
        (0..count).for_each(|_| program.push(list, &gemm::GEMM_NN, &[a, b, c], &shape));
        (count, list)
    });
    let mut session = device.load(program).map_err(flow_lm::Error::from)?;
    let mut rng = Rng::new(1, "product speed");
    for (buffer, words) in [(a, m * k), (b, k * n)] {
        session.write_with(buffer, words, |_| (rng.uniform() - 0.5).to_bits()).map_err(flow_lm::Error::from)?;
    }
    let mut seconds = |list| -> flow_lm::Result<f64> {
        let began = Instant::now();
        session.run(list)?;
        // Waits for the device.
        session.read_f32_at(c, 0, 1)?;
        Ok(began.elapsed().as_secs_f64())
    };
    // Compiles, and wakes threads.
    seconds(lists[0].1)?;
    let mut speed = 0.0;
    for (count, list) in lists {
        let took = seconds(list)?;
        speed = (2 * m * n * k * count) as f64 / took;
        if took >= LONG {
            break;
        }
    }
    Ok(speed)
}

/// Operations a second of a training on this device, by the measure of [`crate::estimate`].
pub fn training_speed(device: &Device) -> Result<f64, StageError> {
    Ok(product_speed(device)? * share(device))
}

/// What a whole step reaches of its products' speed. SmolLM2-135M at 2,048 tokens a step: 0.94 of 90 GFLOP/s on two AVX2 cores,
/// small shapes and Muon less; a GPU's is not measured.
fn share(device: &Device) -> f64 {
    match device {
        Device::Cpu(_) => 0.8,
        Device::Gpu(_) => 0.4,
    }
}
