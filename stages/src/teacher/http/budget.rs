//! What may be spent: a request that could pass a budget is not made.

use std::sync::{Mutex, PoisonError};

use super::spec::Limits;

/// Tokens of prompts and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of prompts.
    pub prompt: u64,
    /// Of answers.
    pub completion: u64,
}

impl Tokens {
    /// Both.
    pub fn total(self) -> u64 {
        self.prompt + self.completion
    }
    fn plus(self, other: (u64, u64)) -> Self {
        Self { prompt: self.prompt + other.0, completion: self.completion + other.1 }
    }
    fn minus(self, other: (u64, u64)) -> Self {
        Self { prompt: self.prompt.saturating_sub(other.0), completion: self.completion.saturating_sub(other.1) }
    }
}

/// The account of one stage.
pub struct Budget {
    limits: Limits,
    /// Used, and what requests in flight may use at most.
    state: Mutex<(Tokens, Tokens)>,
}

impl Budget {
    /// Nothing used yet.
    pub fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), state: Mutex::default() }
    }
    fn state(&self) -> std::sync::MutexGuard<'_, (Tokens, Tokens)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Sets aside what a request may use at most, or says why it must not go.
    pub fn reserve(&self, most: (u64, u64)) -> Result<(), String> {
        let mut state = self.state();
        let all = state.0.plus((state.1.prompt, state.1.completion)).plus(most);
        if let Some(budget) = self.limits.budget_tokens
            && all.total() > budget
        {
            return Err(format!(
                "budget_tokens {budget}: {} are used, and the next request may use {} more",
                state.0.total(),
                most.0 + most.1
            ));
        }
        if let (Some(budget), Some(cost)) = (self.limits.budget_cost, self.limits.cost(all.prompt, all.completion))
            && cost > budget
        {
            let used = self.limits.cost(state.0.prompt, state.0.completion).unwrap_or(0.0);
            return Err(format!(
                "budget_cost {budget}: {used:.4} is used, and the next request may cost {:.4} more",
                self.limits.cost(most.0, most.1).unwrap_or(0.0)
            ));
        }
        state.1 = state.1.plus(most);
        Ok(())
    }
    /// A request ended: what it may have used is replaced by what it used.
    pub fn settle(&self, most: (u64, u64), used: Option<(u64, u64)>) {
        let mut state = self.state();
        state.1 = state.1.minus(most);
        state.0 = state.0.plus(used.unwrap_or_default());
    }
    /// Counts an answer that was kept before.
    pub fn kept(&self, used: (u64, u64)) {
        let mut state = self.state();
        state.0 = state.0.plus(used);
    }
    /// What is used.
    pub fn used(&self) -> Tokens {
        self.state().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_that_could_pass_a_budget() {
        let budget = Budget::new(&Limits { budget_tokens: Some(100), ..Limits::default() });
        assert!(budget.reserve((10, 50)).is_ok());
        assert!(budget.reserve((10, 40)).is_err(), "what is in flight counts");
        budget.settle((10, 50), Some((8, 12)));
        assert!(budget.reserve((10, 50)).is_ok());
        budget.settle((10, 50), None);
        assert_eq!(budget.used(), Tokens { prompt: 8, completion: 12 });
        budget.kept((60, 0));
        assert!(budget.reserve((10, 11)).expect_err("over").contains("budget_tokens 100: 80 are used"));
        let money = Limits { price_prompt: Some(1e4), price_completion: Some(1e5), budget_cost: Some(5.0), ..Limits::default() };
        let budget = Budget::new(&money);
        assert!(budget.reserve((100, 40)).is_ok());
        assert!(budget.reserve((1, 0)).is_err());
    }
}
