//! A run depends on its seed and on nothing else; otherwise a failure could not be looked at. Needs the built module; see
//! `NIMGATE_WASM`.

use nimgate_sim::{machine, plan::Plan, run::run};

#[test]
fn a_seed_always_runs_the_same_way() {
    let machine = machine().unwrap();
    for seed in 1..20 {
        let once = run(&machine, Plan::new(seed, 100, None), None, false);
        let again = run(&machine, Plan::new(seed, 100, None), None, false);
        assert_eq!(once.trace, again.trace, "seed {seed}");
    }
}
