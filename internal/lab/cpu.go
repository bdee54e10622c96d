package lab

import "time"

// CPU is the processor time that a machine took, which has ended.
func (g *Guest) CPU() time.Duration {
	<-g.exited
	state := g.qemu.ProcessState
	return state.UserTime() + state.SystemTime()
}
