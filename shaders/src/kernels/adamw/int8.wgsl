// AdamW with moments of one byte (formulas: adamw/mod.rs). A block of 256 elements has two scales, the largest |m| and the
// largest v; element 4 i + j of a block is byte j of word i.
//   m = sign (c / 127)^2 scale_m, c = low seven bits, bit 7 the sign;  v = (c / 255)^4 scale_v, c >= 1 where v > 0
// The step is taken with the moments before they are rounded. g, w [n]; m, v [ceil(n / 256), 64]; scales [ceil(n / 256), 2].
// One workgroup per block, four elements a lane.

const LANES: u32 = 64u;

@group(0) @binding(5) var<storage, read_write> m: array<u32>;
@group(0) @binding(6) var<storage, read_write> v: array<u32>;
@group(0) @binding(7) var<storage, read_write> scales: array<f32>;

fn first_moment(code: u32, scale: f32) -> f32 {
    let root = f32(code & 127u) * (1.0 / 127.0);
    let value = root * root * scale;
    return select(value, -value, code > 127u);
}

fn second_moment(code: u32, scale: f32) -> f32 {
    let root = f32(code) * (1.0 / 255.0);
    let square = root * root;
    return square * square * scale;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let block = wid.y * groups.x + wid.x;
    if (block * 256u >= p.n) {
        return;
    }
    let word = block * 64u + lane;
    let m_word = m[word];
    let v_word = v[word];
    let m_scale = scales[2u * block];
    let v_scale = scales[2u * block + 1u];
    let lr = hyper[HYPER_LR];
    let goes_on = clip[2] == 0.0;
    var m_new: array<f32, 4>;
    var v_new: array<f32, 4>;
    var m_top = 0.0;
    var v_top = 0.0;
    for (var j = 0u; j < 4u; j++) {
        let i = 4u * word + j;
        m_new[j] = 0.0;
        v_new[j] = 0.0;
        if (i < p.n && goes_on) {
            let grad = g[i] * clip[1];
            m_new[j] = hyper[HYPER_BETA1] * first_moment((m_word >> (8u * j)) & 0xffu, m_scale) + (1.0 - hyper[HYPER_BETA1]) * grad;
            v_new[j] = hyper[HYPER_BETA2] * second_moment((v_word >> (8u * j)) & 0xffu, v_scale) + (1.0 - hyper[HYPER_BETA2]) * grad * grad;
            let decayed = w[i] * (1.0 - lr * hyper[HYPER_WEIGHT_DECAY] * p.decay);
            w[i] = decayed - lr * (m_new[j] / hyper[HYPER_BIAS1]) / (sqrt(v_new[j] / hyper[HYPER_BIAS2]) + hyper[HYPER_EPS]);
        }
        m_top = max(m_top, abs(m_new[j]));
        v_top = max(v_top, v_new[j]);
    }
    m_top = max_lanes(lane, m_top);
    v_top = max_lanes(lane, v_top);
    if (!goes_on) {
        return;
    }
    let m_inverse = select(0.0, 1.0 / m_top, m_top > 0.0);
    let v_inverse = select(0.0, 1.0 / v_top, v_top > 0.0);
    var m_out = 0u;
    var v_out = 0u;
    for (var j = 0u; j < 4u; j++) {
        let root = min(round(sqrt(abs(m_new[j]) * m_inverse) * 127.0), 127.0);
        m_out |= (u32(root) | select(0u, 128u, m_new[j] < 0.0)) << (8u * j);
        let fourth = min(round(sqrt(sqrt(v_new[j] * v_inverse)) * 255.0), 255.0);
        v_out |= max(u32(fourth), select(0u, 1u, v_new[j] > 0.0)) << (8u * j);
    }
    m[word] = m_out;
    v[word] = v_out;
    if (lane == 0u) {
        scales[2u * block] = m_top;
        scales[2u * block + 1u] = v_top;
    }
}

