// The thresholds by which operators choose between kernels that give the same results, one line each:
//
//   BTR_THRESHOLD(family, name, least, portable, avx2, avx512, neon, selects)
//
// declares `tuning().family_name`, called "family.name" by users, with the least value that makes sense, the default on
// each instruction set, and one sentence for `python -m btr_kernels.env`. Above each line stands what was measured.

// AVX2, Zen 3: 512 KB take 20 to 40 us, a few times what waking a thread that spins costs; one that sleeps
// (OMP_WAIT_POLICY=passive, or a busy machine) takes 100 us or more to come.
// AVX-512, Zen 5, two threads: one that spins pays between 192 and 384 KB for each (pack_bits 4.7 us on one, 6.1 on two;
// 8.2, 6.9); one that sleeps comes after 25 us, and does not pay at 1.5 MB for each either (33 us, 41).
BTR_THRESHOLD(parallel, bytes_per_thread, 1, 524288, 524288, 524288, 524288,
              "no thread is started for fewer bytes than this, read or written")
// Zen 5, two threads: at 0.6 million products (50 us) a thread that spins saves 17 us and one that sleeps costs 9; at
// 9 million (204 us) both are even with sleeping threads.
BTR_THRESHOLD(parallel, products_per_thread, 1, 1048576, 1048576, 1048576, 1048576,
              "unpack_matmul starts no thread for fewer multiply-adds than this")

// Zen 3 (32 MB of last-level cache), the result read once afterwards: even at 24 to 32 MB for sign_scale and at 32 to
// 64 MB for unpack_bits; not read, streaming wins from 24 MB for both.
// AVX-512, Zen 5 (32 MB of last-level cache): into a result that was in cache before, even at 28 to 32 MB for sign_scale
// and at 48 MB for unpack_bits, read afterwards or not. Into one that was not, streaming wins from 4 MB (sign_scale, 1.2
// times) if it is not read, from 24 MB (sign_scale) or 32 MB (unpack_bits) if it is. Other sets: not measured.
BTR_THRESHOLD(bits, streaming_bytes, 0, 33554432, 33554432, 33554432, 33554432,
              "unpack_bits and sign_scale that read and write more than this in all write past the caches")

// AVX2, 32 MB last-level cache: from here on it saves reading the result's lines before they are written (13% of
// merging 40 x 200 x 768). AVX-512, Zen 5: wins from 4 MB on if the result is not read (2 MB even, 4 MB 14%, 12 MB 12%);
// if it is read at once, 4 and 12 MB are even and 2 MB lose 10%.
BTR_THRESHOLD(merging, streaming_bytes, 0, 8388608, 8388608, 4194304, 8388608,
              "merge_tokens and its gradient write results larger than this past the caches")

// Zen 3, AVX2, 768 -> 768 and 768 -> 2048 with weights from memory: both ways take as long at about these numbers of
// tokens (16 to 20 for weights as they are, 13 to 16 prepared, 12 to 16 as integers). Zen 5, AVX-512, weights in the
// last-level cache: 14 to 16 (both ways from memory), 13 to 19, 8 to 11.
BTR_THRESHOLD(matmul, dot_max_tokens, 0, 16, 16, 14, 16,
              "unpack_matmul expands up to this many tokens to floats; for more it builds lookup tables")
BTR_THRESHOLD(matmul, sum_max_tokens, 0, 14, 14, 15, 14, "the same for a prepared weight of floats")
BTR_THRESHOLD(matmul, sum_max_tokens_integer, 0, 12, 12, 8, 12, "the same for a weight prepared as fast or int8")
// Zen 3: tables of 5 channels take 1.9 times as long to build and save 3 of 16 look-ups. Zen 5, AVX-512: even at 128
// tokens in float32 and at 192 in int16.
BTR_THRESHOLD(matmul, wide_tables_tokens, 0, 384, 384, 160, 384,
              "unpack_matmul builds tables of 5 channels instead of 4 from this many tokens on")
BTR_THRESHOLD(matmul, block_tokens, 1, 4096, 4096, 4096, 4096,
              "tokens that share one set of lookup tables, if their sums take less than 2 MB")
// Zen 3: from 1.6 MB on (the least that was tried) it saves 4% to 20% of the call, also where the result is read next.
BTR_THRESHOLD(matmul, streaming_bytes, 0, 1048576, 1048576, 1048576, 1048576,
              "unpack_matmul writes results larger than this past the caches")

// AVX2, Zen 3, 768 and 1024 bits against 4096 rows of b and 2048 rows of a. AVX-512, Zen 5, 128 to 1024 bits: blocks win
// from 2 rows of either on (4096 bits: from 3 and 6).
BTR_THRESHOLD(hamming, table_rows, 1, 3, 3, 2, 3,
              "distances of fewer rows of a than this are counted pair by pair, not in blocks (AVX2, AVX-512)")
BTR_THRESHOLD(hamming, table_columns, 1, 12, 12, 2, 12,
              "distances to fewer rows of b than this are counted pair by pair, not in blocks (AVX2, AVX-512)")
// Zen 5 (32 MB of last-level cache), 2048 x 2048 x 768, the result not read: 2.36 ms without, 1.75 ms with AVX-512, 3.10
// and 2.97 ms with AVX2.
BTR_THRESHOLD(hamming, streaming_bytes, 0, 8388608, 8388608, 8388608, 8388608,
              "hamming_distance writes results larger than this past the caches (AVX2, AVX-512)")
