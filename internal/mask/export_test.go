package mask

// HoldLarge bounds what large values of all texts are held, in MiB.
func (k *Keyed) HoldLarge(places int) { k.large = make(chan struct{}, places) }
