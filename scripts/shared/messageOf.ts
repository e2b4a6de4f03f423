/**
 * Any failure's words, for a message to whoever runs a script.
 */
export const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)
