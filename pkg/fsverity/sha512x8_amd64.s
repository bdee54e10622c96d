#include "textflag.h"

// SHA-512 of eight messages at once, FIPS 180-4: each Z register holds one word
// of all eight. Z0-Z7 are the working variables, Z8-Z23 the message schedule.

DATA swap64<>+0x00(SB)/8, $0x0001020304050607
DATA swap64<>+0x08(SB)/8, $0x08090a0b0c0d0e0f
DATA swap64<>+0x10(SB)/8, $0x0001020304050607
DATA swap64<>+0x18(SB)/8, $0x08090a0b0c0d0e0f
DATA swap64<>+0x20(SB)/8, $0x0001020304050607
DATA swap64<>+0x28(SB)/8, $0x08090a0b0c0d0e0f
DATA swap64<>+0x30(SB)/8, $0x0001020304050607
DATA swap64<>+0x38(SB)/8, $0x08090a0b0c0d0e0f
GLOBL swap64<>(SB), RODATA|NOPTR, $64

// LOAD reads 64 big-endian bytes of one message.
#define LOAD(lane, offset, z) \
	MOVQ (lane*8)(SI), AX \
	VMOVDQU64 offset(AX)(DX*1), z \
	VPSHUFB swap64<>(SB), z, z

// TRANSPOSE turns eight words of each of eight messages into eight registers of
// one word each.
#define TRANSPOSE(offset, w0, w1, w2, w3, w4, w5, w6, w7) \
	LOAD(0, offset, Z24) \
	LOAD(1, offset, Z25) \
	LOAD(2, offset, Z26) \
	LOAD(3, offset, Z27) \
	LOAD(4, offset, Z28) \
	LOAD(5, offset, Z29) \
	LOAD(6, offset, Z30) \
	LOAD(7, offset, Z31) \
	VPUNPCKLQDQ Z25, Z24, w0 \
	VPUNPCKLQDQ Z27, Z26, w1 \
	VPUNPCKLQDQ Z29, Z28, w2 \
	VPUNPCKLQDQ Z31, Z30, w3 \
	VPUNPCKHQDQ Z25, Z24, w4 \
	VPUNPCKHQDQ Z27, Z26, w5 \
	VPUNPCKHQDQ Z29, Z28, w6 \
	VPUNPCKHQDQ Z31, Z30, w7 \
	VSHUFI64X2 $0x88, w1, w0, Z24 \
	VSHUFI64X2 $0x88, w3, w2, Z25 \
	VSHUFI64X2 $0xdd, w1, w0, Z26 \
	VSHUFI64X2 $0xdd, w3, w2, Z27 \
	VSHUFI64X2 $0x88, w5, w4, Z28 \
	VSHUFI64X2 $0x88, w7, w6, Z29 \
	VSHUFI64X2 $0xdd, w5, w4, Z30 \
	VSHUFI64X2 $0xdd, w7, w6, Z31 \
	VSHUFI64X2 $0x88, Z25, Z24, w0 \
	VSHUFI64X2 $0x88, Z29, Z28, w1 \
	VSHUFI64X2 $0x88, Z27, Z26, w2 \
	VSHUFI64X2 $0x88, Z31, Z30, w3 \
	VSHUFI64X2 $0xdd, Z25, Z24, w4 \
	VSHUFI64X2 $0xdd, Z29, Z28, w5 \
	VSHUFI64X2 $0xdd, Z27, Z26, w6 \
	VSHUFI64X2 $0xdd, Z31, Z30, w7

// ROUND does one round; k is the offset of its constant from BX.
#define ROUND(a, b, c, d, e, f, g, h, w, k) \
	VPADDQ.BCST k(BX), w, Z24 \
	VPRORQ $14, e, Z25 \
	VPRORQ $18, e, Z26 \
	VPRORQ $41, e, Z27 \
	VPTERNLOGQ $0x96, Z27, Z26, Z25 \
	VMOVDQA64 e, Z28 \
	VPTERNLOGQ $0xca, g, f, Z28 \
	VPADDQ Z24, h, h \
	VPADDQ Z28, Z25, Z25 \
	VPADDQ Z25, h, h \
	VPADDQ h, d, d \
	VPRORQ $28, a, Z29 \
	VPRORQ $34, a, Z30 \
	VPRORQ $39, a, Z31 \
	VPTERNLOGQ $0x96, Z31, Z30, Z29 \
	VMOVDQA64 a, Z28 \
	VPTERNLOGQ $0xe8, c, b, Z28 \
	VPADDQ Z29, h, h \
	VPADDQ Z28, h, h

// SCHEDULE replaces a word by the one of 16 rounds later; w1, w9 and w14 are
// those that many after it.
#define SCHEDULE(w, w1, w9, w14) \
	VPRORQ $1, w1, Z25 \
	VPRORQ $8, w1, Z26 \
	VPSRLQ $7, w1, Z27 \
	VPTERNLOGQ $0x96, Z27, Z26, Z25 \
	VPRORQ $19, w14, Z28 \
	VPRORQ $61, w14, Z29 \
	VPSRLQ $6, w14, Z30 \
	VPTERNLOGQ $0x96, Z30, Z29, Z28 \
	VPADDQ w9, w, w \
	VPADDQ Z28, Z25, Z25 \
	VPADDQ Z25, w, w

#define NEXT(a, b, c, d, e, f, g, h, w, k, w1, w9, w14) \
	ROUND(a, b, c, d, e, f, g, h, w, k) \
	SCHEDULE(w, w1, w9, w14)

#define KEEP(at, z) \
	VPADDQ at(DI), z, z \
	VMOVDQU64 z, at(DI)

// func compress8(state *[8][8]uint64, messages *[8]*byte, chunks uint64, constants *[80]uint64)
TEXT ·compress8(SB), NOSPLIT, $0-32
	MOVQ state+0(FP), DI
	MOVQ messages+8(FP), SI
	MOVQ chunks+16(FP), CX
	XORQ DX, DX

	VMOVDQU64 0(DI), Z0
	VMOVDQU64 64(DI), Z1
	VMOVDQU64 128(DI), Z2
	VMOVDQU64 192(DI), Z3
	VMOVDQU64 256(DI), Z4
	VMOVDQU64 320(DI), Z5
	VMOVDQU64 384(DI), Z6
	VMOVDQU64 448(DI), Z7

chunk:
	TRANSPOSE(0, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15)
	TRANSPOSE(64, Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23)
	MOVQ constants+24(FP), BX
	MOVQ $4, AX

rounds:
	NEXT(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, 0, Z9, Z17, Z22)
	NEXT(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z9, 8, Z10, Z18, Z23)
	NEXT(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z10, 16, Z11, Z19, Z8)
	NEXT(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z11, 24, Z12, Z20, Z9)
	NEXT(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z12, 32, Z13, Z21, Z10)
	NEXT(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z13, 40, Z14, Z22, Z11)
	NEXT(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z14, 48, Z15, Z23, Z12)
	NEXT(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z15, 56, Z16, Z8, Z13)
	NEXT(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 64, Z17, Z9, Z14)
	NEXT(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 72, Z18, Z10, Z15)
	NEXT(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 80, Z19, Z11, Z16)
	NEXT(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 88, Z20, Z12, Z17)
	NEXT(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 96, Z21, Z13, Z18)
	NEXT(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 104, Z22, Z14, Z19)
	NEXT(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 112, Z23, Z15, Z20)
	NEXT(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 120, Z8, Z16, Z21)
	ADDQ $128, BX
	DECQ AX
	JNZ rounds

	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, 0)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z9, 8)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z10, 16)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z11, 24)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z12, 32)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z13, 40)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z14, 48)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z15, 56)
	ROUND(Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z16, 64)
	ROUND(Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z17, 72)
	ROUND(Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z5, Z18, 80)
	ROUND(Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z4, Z19, 88)
	ROUND(Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z3, Z20, 96)
	ROUND(Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z2, Z21, 104)
	ROUND(Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z1, Z22, 112)
	ROUND(Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z0, Z23, 120)

	KEEP(0, Z0)
	KEEP(64, Z1)
	KEEP(128, Z2)
	KEEP(192, Z3)
	KEEP(256, Z4)
	KEEP(320, Z5)
	KEEP(384, Z6)
	KEEP(448, Z7)
	ADDQ $128, DX
	DECQ CX
	JNZ chunk

	VZEROUPPER
	RET
