//! LoHa, LoKr and IA3: what changes a weight throughout.

use super::{Builder, Work, scale};
use crate::Misfit;
use crate::delta::{Delta, Operand};
use crate::key::Role;
use crate::names::At;
use crate::target::{Axis, Form, Rect, matrix_dims};
use std::collections::BTreeMap;

impl Builder<'_> {
    /// LoHa and LoKr: their delta has the shape of the whole weight.
    pub(super) fn full_rank(
        &mut self,
        work: &mut Work<'_>,
        module: &str,
        roles: &BTreeMap<Role, usize>,
        delta: Delta,
        used: &mut Vec<Role>,
    ) {
        used.push(Role::Alpha);
        let tensors: Vec<usize> = delta.operands().iter().flat_map(|o| o.matrices()).map(|m| m.tensor).collect();
        let places = self.places(work, module, &tensors);
        let Some(place) = places.first() else { return };
        let target = self.described(place.position);
        let dims = matrix_dims(&target.shape, false);
        let whole = places.len() == 1 && place.at == At::All && place.in_stack.is_none();
        if !delta.is_sound() || delta.dims() != dims || !whole {
            let (rows, cols) = delta.dims();
            let found = format!("factors for a weight of [{rows}, {cols}]");
            work.misfits.push(Misfit {
                key: work.name(tensors[0]).to_owned(),
                base: Some(target.name.clone()),
                expected: format!("factors for a weight of {}", target.shape),
                found,
            });
            return;
        }
        let rank = delta.operands().iter().map(|o| o.rank()).find(|rank| *rank > 0);
        if let (Some(rank), Some(expected)) = (rank, work.config().rank_of(module))
            && rank != expected
        {
            let key = delta.operands().iter().find(|o| o.rank() > 0).map_or(tensors[0], |o| o.matrices()[0].tensor);
            return work.misfit(key, Some(&target.name), format!("rank {expected}, as the config says"));
        }
        let scale = scale(work, module, roles, rank.unwrap_or(1));
        if delta.is_zero(work.adapter) {
            work.unchanged.push(module.to_owned());
        }
        let rect = Rect { rows: 0..dims.0, cols: 0..dims.1 };
        self.draft(place.position, work.part(rect, Form::Add { delta, scale }), false);
    }

    /// IA3: factors for outputs, which the bias shares, or for the inputs of a feedforward layer.
    pub(super) fn factors(&mut self, work: &mut Work<'_>, module: &str, tensor: usize) {
        for place in self.places(work, module, &[tensor]) {
            let target = self.described(place.position);
            let (rows, cols) = matrix_dims(&target.shape, false);
            let taps = target.shape.dims().iter().skip(2).product::<u64>();
            let factors = work.column(tensor);
            let dims = work.shape(tensor).dims();
            let feedforward =
                match (dims, target.shape.rank()) {
                    ([1, n], 2) if *n > 1 => true,
                    ([_, 1], 2) => false,
                    _ => work.config().feedforward.as_ref().is_some_and(|all| {
                        all.iter().any(|name| module == name || module.ends_with(&format!(".{name}")))
                    }),
                };
            let turned = target.shape.rank() == 2 && (work.config().fan_in_fan_out || self.config.is_conv1d(module));
            let (inputs, outputs) = if turned { (rows, cols) } else { (cols / taps.max(1), rows) };
            let wanted = if feedforward { inputs } else { outputs };
            if factors.rows != wanted || place.at != At::All || place.in_stack.is_some() || place.outputs.is_some() {
                let side = if feedforward { "input" } else { "output" };
                let expected = format!("{wanted} factors, one for each {side} (the base is {})", target.shape);
                work.misfit(tensor, Some(&target.name), expected);
                continue;
            }
            let axis = if feedforward != turned { Axis::Cols } else { Axis::Rows };
            let taps = if axis == Axis::Cols && !turned { taps } else { 1 };
            if factors.decode(work.adapter.bytes(tensor)).iter().all(|l| *l == 1.0) {
                work.unchanged.push(module.to_owned());
            }
            let rect = Rect { rows: 0..rows, cols: 0..cols };
            self.draft(place.position, work.part(rect, Form::Multiply { factors, axis, taps }), false);
            let bias = target.name.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
            if let Some(position) = bias.and_then(|name| self.base.position(&name)).filter(|_| !feedforward) {
                let rect = Rect { rows: 0..outputs, cols: 0..1 };
                let form = Form::Multiply { factors, axis: Axis::Rows, taps: 1 };
                self.draft(position, work.part(rect, form), false);
            }
        }
    }
}

/// The delta of LoHa or LoKr, if the module has one and all of its parts.
pub(super) fn product_of_products(
    work: &mut Work<'_>,
    module: &str,
    roles: &BTreeMap<Role, usize>,
    used: &mut Vec<Role>,
) -> Option<Delta> {
    let hada = [Role::HadaW1A, Role::HadaW1B, Role::HadaW2A, Role::HadaW2B];
    let lokr = [Role::LokrW1, Role::LokrW1A, Role::LokrW1B, Role::LokrW2, Role::LokrW2A, Role::LokrW2B];
    let has = |role: Role| roles.get(&role).copied();
    let any = |all: &[Role]| all.iter().find_map(|role| roles.get(role).copied());
    // Two factors, or two and a core.
    let operand = |work: &Work<'_>, a: usize, b: usize, core: Option<usize>| match core {
        None => Operand::Product(work.matrix(a), work.matrix(b)),
        Some(core) => {
            Operand::Tucker { left: work.matrix(a).transposed(), core: work.matrix(core), right: work.matrix(b) }
        }
    };
    used.extend(hada.into_iter().chain(lokr).chain([Role::HadaT1, Role::HadaT2, Role::LokrT2]));
    if let Some(first) = any(&hada) {
        let all: Option<Vec<usize>> = hada.iter().map(|role| has(*role)).collect();
        let Some(all) = all.filter(|_| has(Role::HadaT1).is_some() == has(Role::HadaT2).is_some()) else {
            work.no_partner(first, &format!("{module}.hada_w1_a, …_w1_b, …_w2_a, …_w2_b, both cores or none"));
            return None;
        };
        return Some(Delta::Hadamard(
            operand(work, all[0], all[1], has(Role::HadaT1)),
            operand(work, all[2], all[3], has(Role::HadaT2)),
        ));
    }
    let first = any(&lokr)?;
    let side = |work: &Work<'_>, whole: Role, a: Role, b: Role, core: Option<usize>| match (has(whole), has(a), has(b))
    {
        (Some(whole), None, None) => Some(Operand::Full(work.matrix(whole))),
        (None, Some(a), Some(b)) => Some(operand(work, a, b, core)),
        _ => None,
    };
    let w1 = side(work, Role::LokrW1, Role::LokrW1A, Role::LokrW1B, None);
    let w2 = side(work, Role::LokrW2, Role::LokrW2A, Role::LokrW2B, has(Role::LokrT2));
    match (w1, w2) {
        (Some(w1), Some(w2)) => Some(Delta::Kronecker(w1, w2)),
        _ => {
            work.no_partner(first, &format!("{module}.lokr_w1 and …_w2, each whole or as …_a and …_b"));
            None
        }
    }
}
