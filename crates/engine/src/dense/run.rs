//! One run of a dense aggregate: every partition gathers its groups, then they are brought together.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::metrics::{Count, Time};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::try_join_all;
use futures::{StreamExt, stream};
use tokio::sync::oneshot;

use super::codes::Codes;
use super::groups::{Added, Grouping, Groups, Piece, first_radix};
use super::keys::{Domain, Radix};
use super::stock::{self, Chunks, Left};

/// Groups, those of all partitions added up, that are brought together in one place: that takes a millisecond, and
/// what comes after has them in one partition.
const FEW: usize = 32 << 10;

/// What is run.
pub(super) struct Work {
    pub(super) grouping: Arc<Grouping>,
    /// What each partition is given; coded keys are dictionaries in it.
    pub(super) input: Arc<dyn ExecutionPlan>,
    /// What DataFusion would do with it first, if strings were not coded.
    pub(super) partial: Arc<AggregateExec>,
    /// Of what is given.
    pub(super) schema: SchemaRef,
    pub(super) context: Arc<TaskContext>,
    /// Time that is spent on rows, by partition.
    pub(super) times: Vec<Time>,
    /// Runs that ended in DataFusion's own aggregates.
    pub(super) fallbacks: Count,
}

/// What one output gives.
pub(super) enum Share {
    Nothing,
    All(Groups),
    Part { groups: Groups, pieces: Arc<Vec<Piece>>, share: u32, every: u32 },
    Stock(SendableRecordBatchStream),
}

/// What a partition has gathered, and what it could not take.
struct Gathered {
    groups: Groups,
    rest: Option<SendableRecordBatchStream>,
}

impl Work {
    /// Does all that comes before the first group is known, and hands out the shares.
    pub(super) async fn run(self: Arc<Self>, outputs: Vec<oneshot::Sender<Result<Share>>>) {
        match self.shares(outputs.len()).await {
            Ok(shares) => {
                for (output, share) in outputs.into_iter().zip(shares) {
                    // One that is not waiting any more wants nothing.
                    let _ = output.send(Ok(share));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for output in outputs {
                    let _ = output.send(Err(DataFusionError::Shared(Arc::clone(&error))));
                }
            }
        }
    }

    async fn shares(self: &Arc<Self>, outputs: usize) -> Result<Vec<Share>> {
        let codes: Arc<[Option<Codes>]> = (self.grouping.keys.iter())
            .map(|key| (key.domain == Domain::Coded).then(|| Codes::new(self.reservation("codes"))))
            .collect();
        let tasks = (0..outputs).map(|partition| {
            let input = self.input.execute(partition, Arc::clone(&self.context))?;
            let (work, codes) = (Arc::clone(self), Arc::clone(&codes));
            Ok(async move { work.gather(partition, input, codes).await })
        });
        let gathered = side_by_side(tasks.collect::<Result<Vec<_>>>()?).await?;
        self.divide(gathered, codes).await
    }

    /// Takes all rows of a partition, or as many as it can.
    async fn gather(
        &self,
        partition: usize,
        mut input: SendableRecordBatchStream,
        codes: Arc<[Option<Codes>]>,
    ) -> Result<Gathered> {
        let radix = first_radix(&self.grouping.keys, self.grouping.slots_max);
        let radix = radix.ok_or_else(|| internal_datafusion_err!("there are too many slots"))?;
        let reservation = self.reservation(&partition.to_string());
        let mut groups = Groups::new(Arc::clone(&self.grouping), codes, radix, reservation)?;
        while let Some(batch) = input.next().await.transpose()? {
            if batch.num_rows() == 0 {
                continue;
            }
            let timer = self.times[partition].timer();
            let added = groups.add(&batch)?;
            timer.done();
            let first = match added {
                Added::All => continue,
                Added::Last => None,
                Added::Nothing => Some(Ok(batch)),
            };
            let rest = RecordBatchStreamAdapter::new(input.schema(), stream::iter(first).chain(input));
            return Ok(Gathered { groups, rest: Some(Box::pin(rest)) });
        }
        Ok(Gathered { groups, rest: None })
    }

    /// Decides who brings which groups together.
    async fn divide(self: &Arc<Self>, gathered: Vec<Gathered>, codes: Arc<[Option<Codes>]>) -> Result<Vec<Share>> {
        let outputs = gathered.len();
        if gathered.iter().any(|one| one.rest.is_some()) {
            let left = gathered.into_iter().map(async |one| Ok((one.groups.into_piece().await?, one.rest)));
            return self.stock(side_by_side(left).await?, codes).await;
        }
        let mut filled: Vec<Groups> = gathered.into_iter().map(|one| one.groups).filter(|one| one.len() > 0).collect();
        let mut shares: Vec<_> = std::iter::repeat_with(|| Share::Nothing).take(outputs).collect();
        if filled.len() <= 1 {
            if let (Some(groups), Some(first)) = (filled.pop(), shares.first_mut()) {
                *first = Share::All(groups);
            }
            return Ok(shares);
        }
        let every = if filled.iter().map(Groups::len).sum::<usize>() <= FEW { 1 } else { outputs };
        let pieces = side_by_side(filled.into_iter().map(Groups::into_piece)).await?;
        let ordinals = self.grouping.keys.iter().zip(codes.iter()).map(|(key, codes)| match (key.domain, codes) {
            (Domain::Range { count, .. }, _) => count + 1,
            (Domain::Coded, codes) => codes.as_ref().map_or(1, Codes::ordinals),
        });
        // Together they have no fewer ordinals than each had alone.
        let radix = Radix::new(ordinals, self.grouping.slots_max);
        // A table of all slots, and no more groups than there are in all pieces.
        let table = radix.as_ref().map_or(0, |radix| radix.slots() as usize * size_of::<u32>());
        let bytes = table + pieces.iter().map(|piece| piece.reservation.size()).sum::<usize>();
        let reservation = self.reservation("merge");
        let Some(radix) = radix.filter(|_| reservation.try_grow(bytes).is_ok()) else {
            return self.stock(pieces.into_iter().map(|piece| (piece, None)).collect(), codes).await;
        };
        let pieces = Arc::new(pieces);
        for (share, place) in shares.iter_mut().take(every).enumerate() {
            let reservation = reservation.split(bytes / every);
            let groups = Groups::new(Arc::clone(&self.grouping), Arc::clone(&codes), radix.clone(), reservation)?;
            // No more than there are partitions.
            let (share, every) = (share as u32, every as u32);
            *place = Share::Part { groups, pieces: Arc::clone(&pieces), share, every };
        }
        Ok(shares)
    }

    async fn stock(
        self: &Arc<Self>,
        pieces: Vec<(Piece, Option<SendableRecordBatchStream>)>,
        codes: Arc<[Option<Codes>]>,
    ) -> Result<Vec<Share>> {
        self.fallbacks.add(1);
        let batch_size = self.context.session_config().batch_size();
        let left = pieces.into_iter().map(|(piece, rows)| {
            let (work, codes) = (Arc::clone(self), Arc::clone(&codes));
            async move {
                let Piece { slots, radix, states, reservation } = piece;
                let mut columns = work.grouping.key_columns(&codes, &radix, &slots)?;
                columns.extend(states);
                let states = Chunks::new(columns, &work.partial.schema(), batch_size, reservation).await?;
                Ok(Left { states, rows })
            }
        });
        let streams = stock::finish(&self.partial, side_by_side(left).await?, &self.context)?;
        Ok(streams.into_iter().map(Share::Stock).collect())
    }

    fn reservation(&self, part: &str) -> MemoryReservation {
        let consumer = MemoryConsumer::new(format!("DenseAggregateStream[{part}]")).with_can_spill(true);
        consumer.register(&self.context.runtime_env().memory_pool)
    }
}

/// What these give, each run as a task. The first error ends the others, and so does dropping this.
async fn side_by_side<T, F>(all: impl IntoIterator<Item = F>) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let tasks: Vec<_> = all.into_iter().map(SpawnedTask::spawn).collect();
    let joined = tasks
        .into_iter()
        .map(async |task| task.join().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))?);
    try_join_all(joined).await
}

impl Share {
    /// The groups of this share, in batches.
    ///
    /// # Errors
    /// What an accumulator says.
    pub(super) async fn into_stream(self, work: &Work, time: &Time) -> Result<SendableRecordBatchStream> {
        let groups = match self {
            Self::Nothing => None,
            Self::Stock(stream) => return Ok(stream),
            Self::All(groups) => Some(groups),
            Self::Part { mut groups, pieces, share, every } => {
                let _timer = time.timer();
                groups.merge(&pieces, share, every).await?;
                Some(groups)
            }
        };
        let _timer = time.timer();
        let columns = match groups {
            Some(groups) => Some(groups.into_columns().await?),
            None => None,
        };
        let rows = columns.map(|(columns, reservation)| {
            Ok::<_, DataFusionError>((RecordBatch::try_new(Arc::clone(&work.schema), columns)?, reservation))
        });
        let batch_size = work.context.session_config().batch_size();
        let batches = rows.transpose()?.into_iter().flat_map(move |(batch, held)| Slices::new(batch, batch_size, held));
        let batches = batches.map(Ok);
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&work.schema), stream::iter(batches))))
    }
}

/// A batch in smaller ones, with the memory that all of them share.
struct Slices {
    batch: RecordBatch,
    start: usize,
    length: usize,
    _held: MemoryReservation,
}

impl Slices {
    fn new(batch: RecordBatch, length: usize, held: MemoryReservation) -> Self {
        Self { batch, start: 0, length, _held: held }
    }
}

impl Iterator for Slices {
    type Item = RecordBatch;

    fn next(&mut self) -> Option<RecordBatch> {
        let length = self.length.min(self.batch.num_rows() - self.start);
        let slice = self.batch.slice(self.start, length);
        self.start += length;
        (length > 0).then_some(slice)
    }
}
