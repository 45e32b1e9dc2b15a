//! Sequences that come and go: what one says depends neither on its neighbours nor on their number.

use flow_lm::config::{ModelConfig, Preset, Weights};
use flow_lm::infer::{Event, Finish, Generator, Request, Sampling, Session, Uses};
use flow_lm::rng::Rng;
use flow_lm::tokenizer::TokenId;
use flow_lm::train::initial_values;
use flow_shaders::device::{Device, open};
use std::collections::BTreeMap;

#[path = "../../../tests/support/skipped.rs"]
mod skip;

const VOCAB: usize = 211;

fn model(weights: Weights) -> (ModelConfig, BTreeMap<String, Vec<f32>>) {
    let config = ModelConfig {
        vocab: VOCAB,
        dim: 64,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        mlp: 96,
        seq: 128,
        weights,
        ..Preset::Poc.config()
    };
    let louder = |t: &flow_lm::config::TensorSpec| initial_values(&config, t, 3).iter().map(|v| v * 3.0).collect();
    let tensors = config.tensors().iter().map(|t| (t.name.clone(), louder(t))).collect();
    (config, tensors)
}

fn devices() -> Vec<Device> {
    open("cpu", 2).into_iter().chain(open("gpu", 0).map_err(|e| skip::skipped(format_args!("on wgpu: {e}")))).collect()
}

/// Requests of many kinds: lengths of prompts, ways to choose, ends.
fn requests() -> Vec<Request> {
    let mut rng = Rng::new(5, "prompts");
    let allowed: std::sync::Arc<[u32]> = vec![0x5555_5555; VOCAB.div_ceil(32)].into();
    (0..9usize)
        .map(|i| {
            let prompt = (0..[1, 5, 33, 2, 40, 32, 7, 64, 3][i]).map(|_| TokenId(rng.below(VOCAB) as u32)).collect();
            let base = Sampling { temperature: [0.0, 0.9, 1.3][i % 3], seed: 11, ..Sampling::default() };
            let sampling = match i {
                1 => Sampling { top_k: 7, ..base },
                3 => Sampling { repetition_penalty: 1.5, ..base },
                4 => Sampling { top_p: 0.7, min_p: 0.05, ..base },
                5 => Sampling { frequency_penalty: 0.8, presence_penalty: 0.3, ..base },
                7 => Sampling { mask: Some(allowed.clone()), bias: vec![(TokenId(2), 3.0), (TokenId(4), -3.0)], ..base },
                _ => base,
            };
            Request {
                prompt,
                max_tokens: [6, 14, 3, 20, 9, 11, 1, 16, 8][i],
                sampling,
                draw: i as u64,
                ends: [9, 17].map(TokenId).to_vec(),
                ..Request::default()
            }
        })
        .collect()
}

fn session(device: &Device, model: &(ModelConfig, BTreeMap<String, Vec<f32>>), slots: usize) -> Session {
    session_of(device, model, Uses { decode: Some((slots, 100)), draws: true, prefill: 32, ..Uses::default() })
}

fn session_of(device: &Device, model: &(ModelConfig, BTreeMap<String, Vec<f32>>), uses: Uses) -> Session {
    Session::new(device, model.0.clone(), &model.1, uses).expect("fits")
}

/// What each request was answered, in a session of so many slots which they join in turn, as room allows and the order asks.
fn answered(session: &mut Session, requests: &[Request], pause: usize) -> Vec<(Vec<TokenId>, Finish)> {
    let mut generator = Generator::new(session).chunks_of_a_step(pause.min(1));
    let mut said: Vec<(Vec<TokenId>, Option<Finish>)> = vec![Default::default(); requests.len()];
    let (mut waiting, mut places, mut steps) = ((0..requests.len()).rev().collect::<Vec<_>>(), BTreeMap::new(), 0);
    while !waiting.is_empty() || !generator.is_idle() {
        while generator.has_room() && !waiting.is_empty() && (steps % (pause + 1) == 0 || generator.is_idle()) {
            let i = waiting.pop().expect("one waits");
            places.insert(generator.join(requests[i].clone()).expect("a good request"), i);
            if pause > 0 {
                break;
            }
        }
        for Event { sequence, token, finish, .. } in generator.step().expect("steps") {
            let one = &mut said[places[&sequence]];
            one.0.extend(token);
            one.1 = one.1.or(finish);
        }
        steps += 1;
    }
    said.into_iter().map(|(tokens, finish)| (tokens, finish.expect("it ended"))).collect()
}

#[test]
fn a_sequence_says_the_same_alone_and_among_others() {
    for (device, weights) in devices().iter().flat_map(|d| [Weights::Float, Weights::Absmean].map(|w| (d, w))) {
        let model = model(weights);
        let all = requests();
        let alone: Vec<_> = all.iter().flat_map(|r| answered(&mut session(device, &model, 1), std::slice::from_ref(r), 0)).collect();
        for (i, (tokens, finish)) in alone.iter().enumerate() {
            let whole = tokens.len() == all[i].max_tokens;
            assert!(whole == (*finish == Finish::Length) && tokens.iter().all(|t| t.index() < VOCAB), "{i}: {tokens:?} {finish:?}");
        }
        assert!(alone[7].0.iter().all(|t| t.0 % 2 == 0), "a mask of even tokens: {:?}", alone[7]);
        for (slots, pause) in [(9, 0), (8, 0), (3, 0), (5, 2), (2, 1)] {
            let together = answered(&mut session(device, &model, slots), &all, pause);
            assert_eq!(together, alone, "{slots} slots, pause {pause}, {weights:?} on {}", device.name());
        }
    }
}

#[test]
fn one_that_leaves_makes_room_and_changes_nobody() {
    let device = open("cpu", 1).expect("the CPU");
    let model = model(Weights::Absmean);
    let all = requests();
    let alone = answered(&mut session(&device, &model, 1), &all[3..4], 0).remove(0);
    let mut lm = session(&device, &model, 2);
    let mut generator = Generator::new(&mut lm);
    let gone = generator.join(all[1].clone()).expect("joins");
    let kept = generator.join(all[3].clone()).expect("joins");
    assert!(!generator.has_room() && generator.join(all[0].clone()).is_err());
    let mut said = Vec::new();
    for step in 0.. {
        if step == 2 {
            generator.leave(gone);
            generator.join(all[4].clone()).expect("there is room");
        }
        let events = generator.step().expect("steps");
        said.extend(events.iter().filter(|e| e.sequence == kept).filter_map(|e| e.token));
        if events.iter().any(|e| e.sequence == kept && e.finish.is_some()) {
            break;
        }
    }
    assert_eq!(said, alone.0);
}

/// A slot of 100 positions holds no whole number of chunks of 32.
#[test]
fn a_prompt_that_just_fits_is_read_as_in_a_larger_slot() {
    for device in devices() {
        let model = model(Weights::Absmean);
        let mut rng = Rng::new(8, "long prompts");
        let mut long = |n: usize| Request {
            prompt: (0..n).map(|_| TokenId(rng.below(VOCAB) as u32)).collect(),
            max_tokens: 100 - n + 1,
            ..Request::default()
        };
        let all = [long(98), long(99), long(97)];
        let mut large = session_of(&device, &model, Uses { decode: Some((1, 160)), prefill: 32, ..Uses::default() });
        let wanted = answered(&mut large, &all, 0);
        for slots in [1, 3] {
            assert_eq!(answered(&mut session(&device, &model, slots), &all, 0), wanted, "{slots} slots on {}", device.name());
        }
        assert_eq!(answered(&mut session(&device, &model, 2), &all, 1), wanted);
    }
}

#[test]
fn what_a_session_was_not_built_for_is_refused_and_no_token_is_none() {
    let model = model(Weights::Absmean);
    let device = open("cpu", 1).expect("the CPU");
    let mut lm = session_of(&device, &model, Uses { decode: Some((1, 16)), ..Uses::default() });
    let mut generator = Generator::new(&mut lm);
    let one = Request { prompt: vec![TokenId(1)], max_tokens: 2, ..Request::default() };
    for (bad, says) in [
        (Request { prompt: vec![TokenId(1); 2], ..one.clone() }, "prefill"),
        (Request { sampling: Sampling::nucleus(1.0, 0.9, 1), ..one.clone() }, "draws"),
        (Request { sampling: Sampling { top_k: 1, repetition_penalty: 2.0, ..Sampling::default() }, ..one.clone() }, "draws"),
    ] {
        let error = generator.join(bad).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    generator.join(Request { max_tokens: 0, ..one.clone() }).expect("joins");
    let events = generator.step().expect("steps");
    assert_eq!((events[0].token, events[0].finish), (None, Some(Finish::Length)));
    generator.join(one).expect("joins");
    assert!(generator.step().expect("steps")[0].token.is_some());
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_value() {
    let model = model(Weights::Absmean);
    let mut lm = session(&open("cpu", 1).expect("the CPU"), &model, 2);
    let mut generator = Generator::new(&mut lm);
    let good = Request { prompt: [1, 2].map(TokenId).to_vec(), max_tokens: 4, ..Request::default() };
    for (bad, says) in [
        (Request { prompt: Vec::new(), ..good.clone() }, "no token"),
        (Request { prompt: [1, 211].map(TokenId).to_vec(), ..good.clone() }, "211"),
        (Request { prompt: vec![TokenId(1); 128], ..good.clone() }, "128"),
        (Request { sampling: Sampling { top_p: 1.5, ..Sampling::default() }, ..good.clone() }, "1.5"),
        (Request { sampling: Sampling { bias: vec![(TokenId(300), 1.0)], ..Sampling::default() }, ..good.clone() }, "300"),
    ] {
        let error = generator.join(bad).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(generator.is_idle() && generator.step().expect("nothing to do").is_empty());
}

/// A conversation goes on in the slot that holds its beginning: less is read, and the bits are those of a new one.
#[test]
fn a_held_beginning_is_not_read_again_and_changes_nothing() {
    for device in devices() {
        let model = model(Weights::Absmean);
        let mut rng = Rng::new(8, "conversation");
        let mut tokens = |n: usize| (0..n).map(|_| TokenId(rng.below(VOCAB) as u32)).collect::<Vec<_>>();
        let (first, more, other) = (tokens(40), tokens(30), tokens(50));
        let ask = |prompt: Vec<TokenId>| Request { prompt, max_tokens: 8, ..Request::default() };
        let longer = ask([&first[..], &more[..]].concat());
        let alone = |r: &Request| answered(&mut session(&device, &model, 1), std::slice::from_ref(r), 0).remove(0).0;
        let (wanted, unrelated) = (alone(&longer), alone(&ask(other.clone())));
        let mut lm = session(&device, &model, 3);
        let mut generator = Generator::new(&mut lm).chunks_of_a_step(1);
        let mut say = |requests: Vec<Request>| {
            let numbers: Vec<u64> = requests.into_iter().map(|r| generator.join(r).expect("joins")).collect();
            let reused: Vec<usize> = numbers.iter().map(|n| generator.reused(*n)).collect();
            let mut said = vec![Vec::new(); numbers.len()];
            while !generator.is_idle() {
                for e in generator.step().expect("steps") {
                    said[numbers.iter().position(|n| *n == e.sequence).expect("one of them")].extend(e.token);
                }
            }
            (said, reused)
        };
        say(vec![ask(first.clone())]);
        // A stranger takes another slot and leaves the beginning where it is.
        assert_eq!(say(vec![ask(other.clone())]), (vec![unrelated.clone()], vec![0]), "{}", device.name());
        assert_eq!(say(vec![longer.clone(), ask(other.clone())]), (vec![wanted.clone(), unrelated], vec![32, 32]), "{}", device.name());
        assert_eq!(say(vec![longer.clone()]), (vec![wanted], vec![64]), "{}", device.name());
    }
}

/// Logprobs are the model's own, whatever the sampling makes of them.
#[test]
fn logprobs_are_told_as_the_model_gives_them() {
    for device in devices() {
        let model = model(Weights::Float);
        let told = |sampling: Sampling| {
            let mut lm = session(&device, &model, 2);
            let mut generator = Generator::new(&mut lm);
            let request =
                Request { prompt: [3, 7, 20].map(TokenId).to_vec(), max_tokens: 1, sampling, logprobs: Some(VOCAB), ..Request::default() };
            generator.join(request).expect("joins");
            generator.step().expect("steps").remove(0)
        };
        let greedy = told(Sampling::greedy());
        let all = greedy.logprobs.expect("told");
        assert_eq!((Some(all.top[0].0), all.top.len()), (greedy.token, VOCAB));
        assert!(all.top.is_sorted_by(|a, b| a.1 >= b.1) && (all.own - all.top[0].1).abs() < 1e-7);
        let mass: f64 = all.top.iter().map(|(_, l)| f64::from(*l).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-5, "{mass}");
        let biased = told(Sampling { bias: vec![(all.top[9].0, 100.0)], ..Sampling::greedy() });
        assert_eq!(biased.token, Some(all.top[9].0));
        let logprobs = biased.logprobs.expect("told");
        assert_eq!((logprobs.own, &logprobs.top), (all.top[9].1, &all.top));
    }
}
