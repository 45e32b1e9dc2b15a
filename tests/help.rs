//! What `flow` says about itself: `tests/cmd/*.trycmd`. `TRYCMD=overwrite cargo test --release --test help` accepts changes.

#[test]
fn commands_say_what_they_do() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}
