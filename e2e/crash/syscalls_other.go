//go:build !amd64

package crash

// older are the calls that newer architectures do without.
var older map[uintptr]syscallInfo
