//! The fingerprint of a kernel: a hash over our own canonical form of its naga module, without names or comments.
//!
//! The form is a walk of what the entry point executes: statements in order, every expression at its first use with
//! numbers for what it refers to. Names, spans, unused declarations and the arenas' order do not enter, named constants
//! count as their values, so a comment, a rename or another layout of the text changes nothing; arithmetic does.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use naga::{
    AddressSpace, ArraySize, AtomicFunction, Block, Constant, Expression, Function, GlobalVariable, Handle, Literal, LocalVariable, Module,
    Scalar, Statement, Type, TypeInner,
};

use crate::kernel::Kernel;

/// Hash of the arithmetic of all modules of a kernel, in hexadecimal; computed once per kernel and process.
pub fn fingerprint(kernel: &Kernel) -> Result<String, String> {
    static KNOWN: OnceLock<Mutex<HashMap<(usize, usize), String>>> = OnceLock::new();
    // The pieces are 'static: their address stands for their text.
    let key = (kernel.wgsl.as_ptr() as usize, kernel.wgsl.len());
    let known = KNOWN.get_or_init(Mutex::default);
    if let Some(hash) = known.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(hash.clone());
    }
    let sources = kernel.modules().flat_map(|m| m.sources().collect::<Vec<_>>());
    let hashes = sources.map(|s| fingerprint_source(&s)).collect::<Result<Vec<_>, _>>();
    let hashes = hashes.map_err(|e| format!("{}: {e}", kernel.name))?;
    let hash = match &hashes[..] {
        [one] => one.clone(),
        all => blake3::hash(all.concat().as_bytes()).to_hex().to_string(),
    };
    known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, hash.clone());
    Ok(hash)
}

/// (name, `<revision>:<hash>`) of every kernel, in the given order; a module that cannot be read (the tests exclude it)
/// counts by its text.
pub fn fingerprints(kernels: &[&Kernel]) -> Vec<(String, String)> {
    use rayon::prelude::*;
    let hash = |k: &Kernel| {
        fingerprint(k).unwrap_or_else(|_| blake3::hash(k.modules().map(|m| m.source()).collect::<String>().as_bytes()).to_hex().to_string())
    };
    kernels.par_iter().map(|k| (k.name.to_owned(), format!("{}:{}", k.revision, hash(k)))).collect()
}

/// Hash of a module that has one entry point.
pub fn fingerprint_source(source: &str) -> Result<String, String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let [entry] = module.entry_points.as_slice() else { return Err("one entry point expected".into()) };
    let mut walk = Walk { module: &module, form: Vec::with_capacity(8192), globals: HashMap::new(), functions: HashMap::new() };
    for size in entry.workgroup_size {
        walk.number(size);
    }
    walk.function(&entry.function)?;
    Ok(blake3::hash(&walk.form).to_hex().to_string())
}

/// The canonical form while it is written.
struct Walk<'a> {
    module: &'a Module,
    form: Vec<u8>,
    globals: HashMap<Handle<GlobalVariable>, u32>,
    functions: HashMap<Handle<Function>, u32>,
}

/// What one function has met so far.
struct Scope<'a> {
    function: &'a Function,
    expressions: HashMap<Handle<Expression>, u32>,
    locals: HashMap<Handle<LocalVariable>, u32>,
}

type Result_ = Result<(), String>;

fn unsupported(what: impl std::fmt::Debug) -> String {
    format!("{what:?} has no canonical form yet: extend shaders/src/fingerprint.rs")
}

impl<'a> Walk<'a> {
    /// Starts a record. Tags are part of the form: never rename one.
    fn tag(&mut self, tag: &str) {
        self.form.push(b' ');
        self.form.extend_from_slice(tag.as_bytes());
    }
    /// A name of a naga enumeration without fields: an operator, a builtin.
    fn word(&mut self, value: impl std::fmt::Debug) {
        let word = format!("{value:?}").to_lowercase();
        self.tag(&word);
    }
    fn number(&mut self, n: u32) {
        self.form.push(b'#');
        self.form.extend_from_slice(&n.to_le_bytes());
    }

    fn function(&mut self, function: &'a Function) -> Result_ {
        self.tag("fn");
        for argument in &function.arguments {
            self.tag("arg");
            self.ty(argument.ty)?;
            match &argument.binding {
                None => {}
                Some(naga::Binding::BuiltIn(builtin)) => self.word(builtin),
                Some(other) => return Err(unsupported(other)),
            }
        }
        if let Some(result) = &function.result {
            self.tag("result");
            self.ty(result.ty)?;
        }
        let mut scope = Scope { function, expressions: HashMap::new(), locals: HashMap::new() };
        self.block(&function.body, &mut scope)?;
        self.tag("end");
        Ok(())
    }

    fn scalar(&mut self, scalar: Scalar) {
        self.word(scalar.kind);
        self.number(u32::from(scalar.width));
    }

    fn ty(&mut self, ty: Handle<Type>) -> Result_ {
        match &self.module.types[ty].inner {
            TypeInner::Scalar(s) => self.scalar(*s),
            TypeInner::Vector { size, scalar } => {
                self.tag("vec");
                self.number(*size as u32);
                self.scalar(*scalar);
            }
            TypeInner::Atomic(s) => {
                self.tag("atomic");
                self.scalar(*s);
            }
            TypeInner::Pointer { base, space } => {
                self.tag("ptr");
                self.space(*space)?;
                self.ty(*base)?;
            }
            TypeInner::Array { base, size, stride } => {
                self.tag("array");
                match size {
                    ArraySize::Constant(n) => self.number(n.get()),
                    ArraySize::Dynamic => self.tag("dynamic"),
                    ArraySize::Pending(_) => return Err(unsupported(size)),
                }
                self.number(*stride);
                self.ty(*base)?;
            }
            TypeInner::Struct { members, span } => {
                self.tag("struct");
                self.number(*span);
                for member in members {
                    self.number(member.offset);
                    self.ty(member.ty)?;
                }
                self.tag("end");
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }

    fn space(&mut self, space: AddressSpace) -> Result_ {
        match space {
            AddressSpace::Function => self.tag("function"),
            AddressSpace::Private => self.tag("private"),
            AddressSpace::WorkGroup => self.tag("workgroup"),
            AddressSpace::Uniform => self.tag("uniform"),
            AddressSpace::Storage { access } => {
                self.tag("storage");
                self.number(access.bits());
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }

    fn global(&mut self, handle: Handle<GlobalVariable>) -> Result_ {
        self.tag("global");
        if let Some(n) = self.globals.get(&handle) {
            let n = *n;
            self.number(n);
            return Ok(());
        }
        let n = self.globals.len() as u32;
        self.globals.insert(handle, n);
        self.number(n);
        let global = &self.module.global_variables[handle];
        self.space(global.space)?;
        if let Some(at) = &global.binding {
            self.number(at.group);
            self.number(at.binding);
        }
        self.ty(global.ty)?;
        global.init.map_or(Ok(()), |init| self.constant_expression(init))
    }

    fn constant(&mut self, handle: Handle<Constant>) -> Result_ {
        self.constant_expression(self.module.constants[handle].init)
    }

    fn constant_expression(&mut self, handle: Handle<Expression>) -> Result_ {
        match &self.module.global_expressions[handle] {
            Expression::Literal(literal) => self.literal(*literal),
            Expression::Constant(constant) => self.constant(*constant),
            Expression::ZeroValue(ty) => {
                self.tag("zero");
                self.ty(*ty)
            }
            Expression::Compose { ty, components } => {
                self.tag("compose");
                self.ty(*ty)?;
                components.iter().try_for_each(|c| self.constant_expression(*c))
            }
            Expression::Splat { size, value } => {
                self.tag("splat");
                self.number(*size as u32);
                self.constant_expression(*value)
            }
            other => Err(unsupported(other)),
        }
    }

    fn literal(&mut self, literal: Literal) -> Result_ {
        match literal {
            Literal::F32(x) => {
                self.tag("f32");
                self.number(x.to_bits());
            }
            Literal::U32(x) => {
                self.tag("u32");
                self.number(x);
            }
            Literal::I32(x) => {
                self.tag("i32");
                self.number(x as u32);
            }
            Literal::Bool(x) => {
                self.tag("bool");
                self.number(u32::from(x));
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }

    /// Refers to an expression: its number, after its content at the first use.
    fn expression(&mut self, handle: Handle<Expression>, scope: &mut Scope<'a>) -> Result_ {
        if let Some(n) = scope.expressions.get(&handle) {
            let n = *n;
            self.number(n);
            return Ok(());
        }
        self.form.push(b'(');
        self.content(handle, scope)?;
        self.form.push(b')');
        let n = scope.expressions.len() as u32;
        scope.expressions.insert(handle, n);
        Ok(())
    }

    fn content(&mut self, handle: Handle<Expression>, scope: &mut Scope<'a>) -> Result_ {
        let function = scope.function;
        match &function.expressions[handle] {
            Expression::Literal(literal) => self.literal(*literal),
            Expression::Constant(constant) => self.constant(*constant),
            Expression::ZeroValue(ty) => {
                self.tag("zero");
                self.ty(*ty)
            }
            Expression::Compose { ty, components } => {
                self.tag("compose");
                self.ty(*ty)?;
                components.iter().try_for_each(|c| self.expression(*c, scope))
            }
            Expression::Access { base, index } => {
                self.tag("access");
                self.expression(*base, scope)?;
                self.expression(*index, scope)
            }
            Expression::AccessIndex { base, index } => {
                self.tag("member");
                self.expression(*base, scope)?;
                self.number(*index);
                Ok(())
            }
            Expression::Splat { size, value } => {
                self.tag("splat");
                self.number(*size as u32);
                self.expression(*value, scope)
            }
            Expression::Swizzle { size, vector, pattern } => {
                self.tag("swizzle");
                for component in &pattern[..*size as usize] {
                    self.number(*component as u32);
                }
                self.expression(*vector, scope)
            }
            Expression::FunctionArgument(i) => {
                self.tag("argument");
                self.number(*i);
                Ok(())
            }
            Expression::GlobalVariable(global) => self.global(*global),
            Expression::LocalVariable(local) => self.local(*local, scope),
            Expression::Load { pointer } => {
                self.tag("load");
                self.expression(*pointer, scope)
            }
            Expression::Unary { op, expr } => {
                self.tag("unary");
                self.word(op);
                self.expression(*expr, scope)
            }
            Expression::Binary { op, left, right } => {
                self.tag("binary");
                self.word(op);
                self.expression(*left, scope)?;
                self.expression(*right, scope)
            }
            Expression::Select { condition, accept, reject } => {
                self.tag("select");
                [condition, accept, reject].into_iter().try_for_each(|e| self.expression(*e, scope))
            }
            Expression::Relational { fun, argument } => {
                self.tag("relational");
                self.word(fun);
                self.expression(*argument, scope)
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                self.tag("math");
                self.word(fun);
                self.expression(*arg, scope)?;
                [arg1, arg2, arg3].into_iter().flatten().try_for_each(|e| self.expression(*e, scope))
            }
            Expression::As { expr, kind, convert } => {
                self.tag("as");
                self.word(kind);
                self.number(u32::from(convert.unwrap_or(0)));
                self.expression(*expr, scope)
            }
            Expression::CallResult(_)
            | Expression::AtomicResult { .. }
            | Expression::WorkGroupUniformLoadResult { .. }
            | Expression::SubgroupOperationResult { .. } => {
                // Its statement was written before; the number alone refers to it.
                self.tag("result");
                Ok(())
            }
            Expression::ArrayLength(array) => {
                self.tag("length");
                self.expression(*array, scope)
            }
            other => Err(unsupported(other)),
        }
    }

    fn local(&mut self, handle: Handle<LocalVariable>, scope: &mut Scope<'a>) -> Result_ {
        self.tag("local");
        if let Some(n) = scope.locals.get(&handle) {
            let n = *n;
            self.number(n);
            return Ok(());
        }
        let n = scope.locals.len() as u32;
        scope.locals.insert(handle, n);
        self.number(n);
        let local = &scope.function.local_variables[handle];
        self.ty(local.ty)?;
        local.init.map_or(Ok(()), |init| self.expression(init, scope))
    }

    fn block(&mut self, block: &'a Block, scope: &mut Scope<'a>) -> Result_ {
        self.form.push(b'{');
        for statement in block {
            self.statement(statement, scope)?;
        }
        self.form.push(b'}');
        Ok(())
    }

    fn statement(&mut self, statement: &'a Statement, scope: &mut Scope<'a>) -> Result_ {
        match statement {
            // Where a load happens matters, so expressions are written where they are evaluated.
            Statement::Emit(range) => range.clone().try_for_each(|e| self.expression(e, scope))?,
            Statement::Block(block) => self.block(block, scope)?,
            Statement::If { condition, accept, reject } => {
                self.tag("if");
                self.expression(*condition, scope)?;
                self.block(accept, scope)?;
                self.block(reject, scope)?;
            }
            Statement::Loop { body, continuing, break_if } => {
                self.tag("loop");
                self.block(body, scope)?;
                self.block(continuing, scope)?;
                break_if.map_or(Ok(()), |e| self.expression(e, scope))?;
            }
            Statement::Break => self.tag("break"),
            Statement::Continue => self.tag("continue"),
            Statement::Return { value } => {
                self.tag("return");
                value.map_or(Ok(()), |e| self.expression(e, scope))?;
            }
            Statement::ControlBarrier(flags) => {
                self.tag("barrier");
                self.number(flags.bits());
            }
            Statement::Store { pointer, value } => {
                self.tag("store");
                self.expression(*pointer, scope)?;
                self.expression(*value, scope)?;
            }
            Statement::Atomic { pointer, fun, value, result } => {
                self.tag("atomic");
                match fun {
                    AtomicFunction::Exchange { compare: Some(compare) } => {
                        self.tag("compare");
                        self.expression(*compare, scope)?;
                    }
                    AtomicFunction::Exchange { compare: None } => self.tag("exchange"),
                    simple => self.word(simple),
                }
                self.expression(*pointer, scope)?;
                self.expression(*value, scope)?;
                result.map_or(Ok(()), |e| self.expression(e, scope))?;
            }
            Statement::WorkGroupUniformLoad { pointer, result } => {
                self.tag("uniform load");
                self.expression(*pointer, scope)?;
                self.expression(*result, scope)?;
            }
            Statement::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                self.tag("subgroup");
                self.word(op);
                self.word(collective_op);
                self.expression(*argument, scope)?;
                self.expression(*result, scope)?;
            }
            Statement::Call { function, arguments, result } => {
                self.tag("call");
                self.call(*function)?;
                arguments.iter().try_for_each(|e| self.expression(*e, scope))?;
                result.map_or(Ok(()), |e| self.expression(e, scope))?;
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }

    /// Refers to a function: its number, with its body at the first call.
    fn call(&mut self, handle: Handle<Function>) -> Result_ {
        if let Some(n) = self.functions.get(&handle) {
            let n = *n;
            self.number(n);
            return Ok(());
        }
        let n = self.functions.len() as u32;
        self.functions.insert(handle, n);
        self.number(n);
        self.function(&self.module.functions[handle])
    }
}
